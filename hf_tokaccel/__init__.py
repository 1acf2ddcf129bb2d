"""Token clustering for dense prediction with vision transformers of Hugging Face Transformers, without retraining.

Importing this package imports neither torch nor Transformers. Every name below is imported when it is first used, and
a model family when its type or one of its classes is first asked for, here or of an Auto class.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .discovery import offer_types as _offer_types
from .version import __version__

if TYPE_CHECKING:
    from .auto import accelerate, accelerate_config
    from .hosts.convert import to_native, to_native_config
    from .hosts.track import observe_clusters
    from .registry import FAMILIES, support_table
    from .settings.clustering import TokenClusteringConfig
    from .settings.semantic import SemanticTokenConfig
    from .tuning.api import tune
    from .tuning.encoder import for_speedup
    from .tuning.recommended import recommended
    from .tuning.released import released

_MODULES = {
    "FAMILIES": "registry",
    "SemanticTokenConfig": "settings.semantic",
    "TokenClusteringConfig": "settings.clustering",
    "accelerate": "auto",
    "accelerate_config": "auto",
    "for_speedup": "tuning.encoder",
    "observe_clusters": "hosts.track",
    "recommended": "tuning.recommended",
    "released": "tuning.released",
    "support_table": "registry",
    "to_native": "hosts.convert",
    "to_native_config": "hosts.convert",
    "tune": "tuning.api",
}

__all__ = [
    "FAMILIES",
    "SemanticTokenConfig",
    "TokenClusteringConfig",
    "__version__",
    "accelerate",
    "accelerate_config",
    "for_speedup",
    "observe_clusters",
    "recommended",
    "released",
    "support_table",
    "to_native",
    "to_native_config",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_offer_types()
