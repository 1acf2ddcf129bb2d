"""Token clustering for dense prediction with vision transformers of Hugging Face Transformers, without retraining.

Importing this package imports neither torch nor Transformers. Every name below is imported when it is first used, and
a model family when its type or one of its classes is first asked for, here or of an Auto class.
"""

from typing import TYPE_CHECKING

from .discovery import offer_types as _offer_types
from .lazy import lazy_names as _lazy_names
from .version import __version__

if TYPE_CHECKING:
    from .hosts.convert import to_native, to_native_config
    from .hosts.track import observe_clusters
    from .registry import FAMILIES, support_table
    from .settings.clustering import TokenClusteringConfig
    from .settings.semantic import SemanticTokenConfig
    from .tuning.accelerating import accelerate, accelerate_config
    from .tuning.api import tune
    from .tuning.encoder import for_speedup
    from .tuning.recommended import recommended
    from .tuning.released import released

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "FAMILIES": ".registry",
        "SemanticTokenConfig": ".settings.semantic",
        "TokenClusteringConfig": ".settings.clustering",
        "accelerate": ".tuning.accelerating",
        "accelerate_config": ".tuning.accelerating",
        "for_speedup": ".tuning.encoder",
        "observe_clusters": ".hosts.track",
        "recommended": ".tuning.recommended",
        "released": ".tuning.released",
        "support_table": ".registry",
        "to_native": ".hosts.convert",
        "to_native_config": ".hosts.convert",
        "tune": ".tuning.api",
    },
)

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

_offer_types()
