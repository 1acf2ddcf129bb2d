"""How much of the tokens before each block clusters would lose: measured in one pass of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..auto import accelerate
from ..clustering.adaptive import average_tokens, partition_tokens, reconstruct_regions
from ..clustering.functional import cluster_tokens, plan_reconstruction, reconstruct_tokens
from ..hosts.blocks import Grid
from ..hosts.track import TokenTrack
from ..settings.clustering import TokenClusteringConfig

SHARES = (0.35, 0.5, 0.65, 0.8)  # of the side of the token grid
MOST = 4096  # tokens that are matched all with all; more are matched in tiles
TILE = 16
Note = Callable[[int, float, float, int], None]


class _Probe(TokenTrack):
    """A track that clusters nothing but notes what clustering before each block would lose."""

    def __init__(self, *args: Any, note: Note, first: int, adaptive: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note, self.first, self.adaptive = note, first, adaptive

    def before_layer(self, index: int, states: Tensor, normalize: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        _, given = self.layout.split(states, self.layout.grid)
        tokens = given.float()
        spread = (tokens - tokens.mean(1, keepdim=True)).square().sum().item()
        means = self._regions(tokens, normalize(given)) if self.adaptive else self._grids(tokens)
        for clusters, rebuilt in means:
            lost = (rebuilt - tokens).square().sum().item()
            self.note(self.first + index, clusters / tokens.shape[1], lost / max(spread, 1e-30), len(states))
        if index == 0:
            self._record(0, states)
        return states

    def _grids(self, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        for grid in probe_grids(self.layout.grid):
            clusters = cluster_tokens(tokens, self.layout.grid, grid)
            plan = plan_reconstruction(tokens, clusters.centroids, normalization="l1")
            yield grid[0] * grid[1], reconstruct_tokens(clusters.centroids, plan)

    def _regions(self, tokens: Tensor, keys: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Means of regions, each partition going on from the one before, so that few tokens are matched twice."""
        regions, tile = None, TILE if tokens.shape[1] > MOST else None
        for share in reversed(SHARES):
            count = max(1, round(share**2 * tokens.shape[1]))
            grid = self.layout.grid if tile else None
            regions = partition_tokens(keys, count, share=0.5, rows=regions, grid=grid, tile=tile)
            means = average_tokens(tokens, regions)
            yield count, reconstruct_regions(means, regions, expansion="nearest")


def probe_grids(tokens: Grid) -> list[Grid]:
    """Cluster grids that are measured, from few to many."""
    grids = {tuple(max(1, round(side * share)) for side in tokens) for share in SHARES}
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def measure_redundancy(
    model: PreTrainedModel, batches: Sequence[dict[str, Any]], span: Grid, adaptive: bool = False
) -> dict[int, list[tuple[float, float]]]:
    """For each block of a span the share of variance that clusters before it lose, by the share of tokens kept.

    Args:
        model: dense.
        batches: keyword arguments of its forward.
        span: (first, end) of the blocks.
        adaptive: whether clusters are regions of free shape, else grids.

    Returns:
        By block, (clusters / tokens, lost variance / variance) from few to many clusters.
    """
    first, end = span
    sums: dict[tuple[int, float], list[float]] = {}

    def note(index: int, share: float, lost: float, count: int) -> None:
        entry = sums.setdefault((index, share), [0.0, 0.0])
        entry[0] += lost * count
        entry[1] += count

    # Only the last block of the span is changed for clusters, and it is measured before it runs.
    last = TokenClusteringConfig(cluster_after=end - 1, cluster_grid=(1, 1))
    probing = accelerate(model, last)
    for module in probing.modules():
        own = getattr(module, "accel", None)
        if own is not None and hasattr(module, "accel_make_track"):
            moved = end - 1 - own.cluster_after
            module.accel_make_track = partial(_Probe, note=note, first=moved, adaptive=adaptive)
    with torch.inference_mode():
        for batch in batches:
            probing(**batch)
    table: dict[int, list[tuple[float, float]]] = {}
    for (index, share), (total, count) in sorted(sums.items()):
        if first <= index < end:
            table.setdefault(index, []).append((share, total / count))
    return table


def predicted_loss(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Lost variance at a share of tokens: linear between what was measured, and to 0 at all tokens and 1 at none."""
    points = [(0.0, 1.0), *curve, (1.0, 0.0)]
    for (left, high), (right, low) in pairwise(points):
        if share <= right:
            return high + (low - high) * (share - left) / max(right - left, 1e-9)
    return 0.0
