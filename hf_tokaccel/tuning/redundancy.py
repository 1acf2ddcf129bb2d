"""How much of the tokens before each block clusters would lose: measured in one pass of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..auto import accelerate
from ..clustering.functional import cluster_tokens, plan_reconstruction, reconstruct_tokens
from ..hosts.blocks import Encoder, Grid
from ..hosts.track import TokenTrack
from ..settings.clustering import TokenClusteringConfig

SHARES = (0.35, 0.5, 0.65, 0.8)  # of the side of the token grid


class _Probe(TokenTrack):
    """A track that clusters nothing but notes what clustering before each block would lose."""

    def __init__(self, *args: Any, note: Callable[[int, Grid, float, int], None], first: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note, self.first = note, first

    def before_layer(self, index: int, states: Tensor, norm: nn.Module | None = None) -> Tensor:
        _, tokens = self.layout.split(states, self.layout.grid)
        tokens = tokens.float()
        spread = (tokens - tokens.mean(1, keepdim=True)).square().sum().item()
        for grid in probe_grids(self.layout.grid):
            clusters = cluster_tokens(tokens, self.layout.grid, grid)
            plan = plan_reconstruction(tokens, clusters.centroids, normalization="l1")
            lost = (reconstruct_tokens(clusters.centroids, plan) - tokens).square().sum().item()
            self.note(self.first + index, grid, lost / max(spread, 1e-30), len(states))
        if index == 0:
            self._record(0, states)
        return states


def probe_grids(tokens: Grid) -> list[Grid]:
    """Cluster grids that are measured, from few to many."""
    grids = {tuple(max(1, round(side * share)) for side in tokens) for share in SHARES}
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def measure_redundancy(
    model: PreTrainedModel, batches: Sequence[dict[str, Any]], encoder: Encoder, span: Grid
) -> dict[int, list[tuple[float, float]]]:
    """For each block of a span the share of variance that clusters before it lose, by the share of tokens kept.

    Args:
        model: dense.
        batches: keyword arguments of its forward.
        encoder: of the model at the size of these images.
        span: (first, end) of the blocks.

    Returns:
        By block, (clusters / tokens, lost variance / variance) from few to many clusters.
    """
    first, end = span
    tokens = encoder.blocks[first].grid
    sums: dict[tuple[int, Grid], list[float]] = {}

    def note(index: int, grid: Grid, lost: float, count: int) -> None:
        entry = sums.setdefault((index, grid), [0.0, 0.0])
        entry[0] += lost * count
        entry[1] += count

    # Only the last block of the span is changed for clusters, and it is measured before it runs.
    last = TokenClusteringConfig(cluster_after=end - 1, cluster_grid=(1, 1))
    probing = accelerate(model, last)
    for module in probing.modules():
        own = getattr(module, "accel", None)
        if own is not None and hasattr(module, "accel_make_track"):
            module.accel_make_track = partial(_Probe, note=note, first=end - 1 - own.cluster_after)
    with torch.inference_mode():
        for batch in batches:
            probing(**batch)
    table: dict[int, list[tuple[float, float]]] = {}
    for (index, grid), (total, count) in sorted(sums.items(), key=lambda item: (item[0][0], item[0][1])):
        if first <= index < end:
            share = grid[0] * grid[1] / (tokens[0] * tokens[1])
            table.setdefault(index, []).append((share, total / count))
    return table


def predicted_loss(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Lost variance at a share of tokens: linear between what was measured, and to 0 at all tokens and 1 at none."""
    points = [(0.0, 1.0), *curve, (1.0, 0.0)]
    for (left, high), (right, low) in pairwise(points):
        if share <= right:
            return high + (low - high) * (share - left) / max(right - left, 1e-9)
    return 0.0
