"""Token clustering for dense prediction with vision transformers of Hugging Face Transformers, without retraining."""

from typing import Any

from . import models as _models  # noqa: F401  registers the tokaccel_* types
from .auto import accelerate, accelerate_config
from .hosts.convert import to_native, to_native_config
from .hosts.track import observe_clusters
from .registry import FAMILIES, support_table
from .semantic import SemanticTokenConfig
from .settings.clustering import TokenClusteringConfig
from .tuning.encoder import for_speedup
from .tuning.recommended import recommended
from .tuning.released import released
from .version import __version__

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
    # The search needs the evaluation, whose imports take seconds.
    if name == "tune":
        from .tuning import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
