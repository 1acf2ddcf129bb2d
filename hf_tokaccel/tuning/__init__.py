"""Choosing a setting: in closed form from a configuration, or by a search on unlabelled images."""

from typing import Any

__all__ = ["Trial", "TuneResult", "tune"]


def __getattr__(name: str) -> Any:
    # The search needs the evaluation, whose imports take seconds; the closed form does not.
    if name == "tune":
        from .api import tune

        return tune
    if name in __all__:
        from . import result

        return getattr(result, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
