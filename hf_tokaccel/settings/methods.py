"""The settings by their method, and every form in which a user may give one."""

from typing import Any

from ..checks import UserError, brief, check_choice
from .clustering import TokenClusteringConfig
from .semantic import SemanticTokenConfig

METHODS: dict[str, type] = {"token_clustering": TokenClusteringConfig, "semantic_tokens": SemanticTokenConfig}


def as_accel(accel: Any) -> Any:
    """Accepts every form in which a user may give a setting, and returns the dataclass, or None.

    Raises:
        ValueError: when it is none of a `TokenClusteringConfig`, a `SemanticTokenConfig`, the dict of one, or None.
    """
    if accel is None or isinstance(accel, tuple(METHODS.values())):
        return accel
    if isinstance(accel, dict):
        method = accel.get("method", "token_clustering")
        check_choice("method", method, tuple(METHODS), "token_clustering")
        return METHODS[method].from_dict(accel)
    raise UserError(
        f"accel={brief(accel)} is not valid: it must be None, a dict, a TokenClusteringConfig or a "
        "SemanticTokenConfig, for example TokenClusteringConfig(cluster_after=6, cluster_grid=(16, 16))."
    )
