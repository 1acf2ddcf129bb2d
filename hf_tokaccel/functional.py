"""The method as pure functions on tensors: the public name of `hf_tokaccel.clustering`."""

from .clustering.functional import (
    ReconstructionPlan,
    TokenClusters,
    cluster_tokens,
    plan_reconstruction,
    reconstruct_tokens,
)

__all__ = ["ReconstructionPlan", "TokenClusters", "cluster_tokens", "plan_reconstruction", "reconstruct_tokens"]
