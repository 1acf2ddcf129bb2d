"""Choosing a setting: in closed form from a configuration, or by a search on unlabelled images."""

from ..lazy import lazy_names

__all__ = ["Trial", "TuneResult", "tune"]

# The search needs the evaluation, whose imports take seconds; the closed form does not.
__getattr__, __dir__ = lazy_names(__name__, {"Trial": ".result", "TuneResult": ".result", "tune": ".api"})
