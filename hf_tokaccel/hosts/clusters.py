"""The clusters of a forward pass: how they are made of tokens, what they stand for, and the way back to all tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clustering.adaptive import TokenRegions, average_tokens, partition_tokens, reconstruct_regions
from ..clustering.functional import (
    ReconstructionPlan,
    cluster_tokens,
    plan_reconstruction,
    reconstruct_tokens,
)
from ..settings.clustering import TokenClusteringConfig

Grid = tuple[int, int]


class GridClusters:
    """Clusters on a grid (sections 3.1 and 3.2 of Expedit).

    Args:
        accel: the setting.
        grid: (H, W) of the tokens.
        tokens: (B, N, C), kept for the way back.
        keys: (B, N, K) what is compared, or None for the tokens.
        values: (B, N, C + P) what is averaged; begins with the tokens.
    """

    def __init__(
        self, accel: TokenClusteringConfig, grid: Grid, tokens: Tensor, keys: Tensor | None, values: Tensor
    ) -> None:
        self.accel, self.grid, self.shape = accel, grid, accel.cluster_grid
        self.tokens, self.keys = tokens, keys
        self.means, self.key_centroids = cluster_tokens(
            values,
            grid,
            self.shape,
            iterations=accel.iterations,
            inverse_temperature=accel.inverse_temperature,
            window=accel.window,
            keys=tokens if keys is None and values is not tokens else keys,
        )
        self.centroids = self.means[..., : tokens.shape[-1]].to(tokens.dtype)
        self._plan: ReconstructionPlan | None = None

    def sizes(self) -> Tensor:
        """(B, M) tokens that each cluster stands for, by the weights that rebuild them."""
        plan = self.plan(self.tokens.device)
        weights = plan.weights / plan.weights.sum(-1, keepdim=True)
        total = weights.new_zeros(len(weights), self.centroids.shape[1])
        return total.scatter_add(1, plan.indices.flatten(1), weights.flatten(1))

    def rebuild(self, refined: Tensor) -> Tensor:
        """(B, N, C) from what became of the clusters."""
        return reconstruct_tokens(refined, self.plan(refined.device))

    def spread(self, change: Tensor) -> Tensor:
        """(B, N, C') from a change of the clusters of any width: its weighted sums, whatever expands."""
        return reconstruct_tokens(change, self.plan(change.device)._replace(tokens=None, centroids=None))

    def labels(self) -> Tensor:
        """(B, N) index of the nearest cluster of each token, row-major over the cluster grid."""
        keys = self.tokens if self.keys is None else self.keys
        return plan_reconstruction(keys, self.key_centroids, expansion="nearest").indices[..., 0]

    def plan(self, device: torch.device) -> ReconstructionPlan:
        """The one plan of a pass, built when it is first needed, on the device where it is needed."""
        if self._plan is None:
            accel, keyed = self.accel, self.keys is not None
            self._plan = plan_reconstruction(
                self.tokens,
                self.centroids,
                neighbors=accel.neighbors,
                inverse_temperature=accel.inverse_temperature,
                normalization=accel.normalization,
                expansion=accel.expansion,
                keys=self.keys,
                key_centroids=self.key_centroids if keyed else None,
                grid=self.grid,
                cluster_grid=self.shape,
                window=accel.neighbor_window,
            )
        if self._plan.weights.device != device:
            # A device map may split the clustered blocks over devices.
            self._plan = type(self._plan)(*(part if part is None else part.to(device) for part in self._plan))
        return self._plan


class AdaptiveClusters:
    """Clusters of free shape and a fixed count.

    Args:
        accel: the setting.
        grid: (H, W) of the tokens.
        tokens: (B, N, C), kept for the way back.
        keys: (B, N, K) what is compared, or None for the tokens.
        values: (B, N, C + P) what is averaged; begins with the tokens.
        count: clusters M.
        before: clusters of an earlier step to go on from.
    """

    def __init__(
        self,
        accel: TokenClusteringConfig,
        grid: Grid,
        tokens: Tensor,
        keys: Tensor | None,
        values: Tensor,
        count: int,
        before: AdaptiveClusters | None = None,
    ) -> None:
        self.accel, self.tokens = accel, tokens
        # What layouts take for a grid.
        self.shape = (1, count)
        self.regions = self.partition(tokens if keys is None else keys, grid, count, before)
        self.means = average_tokens(values, self.regions)
        self.centroids = self.means[..., : tokens.shape[-1]].to(tokens.dtype)

    def partition(self, keys: Tensor, grid: Grid, count: int, before: AdaptiveClusters | None) -> TokenRegions:
        """Which token is of which cluster; rivals choose otherwise."""
        return partition_tokens(
            keys,
            count,
            share=self.accel.round_share,
            rows=None if before is None else before.regions,
            grid=grid if self.accel.tile else None,
            tile=self.accel.tile,
        )

    def sizes(self) -> Tensor:
        """(B, M) tokens of each cluster."""
        return self.regions.sizes.float()

    def rebuild(self, refined: Tensor) -> Tensor:
        """(B, N, C) from what became of the clusters."""
        self._move(refined.device)
        return reconstruct_regions(
            refined, self.regions, expansion=self.accel.expansion, tokens=self.tokens, centroids=self.centroids
        )

    def spread(self, change: Tensor) -> Tensor:
        """(B, N, C') with the change of its cluster for each token."""
        self._move(change.device)
        return reconstruct_regions(change, self.regions, expansion="nearest")

    def labels(self) -> Tensor:
        """(B, N) index of the cluster of each token."""
        return self.regions.rows

    def _move(self, device: torch.device) -> None:
        # A device map may split the clustered blocks over devices.
        if self.tokens.device != device:
            self.regions = TokenRegions(*(part if part is None else part.to(device) for part in self.regions))
            self.tokens, self.centroids = self.tokens.to(device), self.centroids.to(device)
