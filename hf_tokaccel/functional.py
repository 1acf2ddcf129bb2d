"""The method as pure functions on tensors: the public name of `hf_tokaccel.clustering`."""

from .clustering.adaptive import (
    TokenRegions,
    append_sizes,
    average_tokens,
    partition_tokens,
    reconstruct_regions,
    size_bias,
)
from .clustering.functional import (
    ReconstructionPlan,
    TokenClusters,
    cluster_tokens,
    plan_reconstruction,
    reconstruct_tokens,
)

__all__ = [
    "ReconstructionPlan",
    "TokenClusters",
    "TokenRegions",
    "append_sizes",
    "average_tokens",
    "cluster_tokens",
    "partition_tokens",
    "plan_reconstruction",
    "reconstruct_regions",
    "reconstruct_tokens",
    "size_bias",
]
