"""Tiles: how a token meets only the clusters that it can reach.

A tile is the set of tokens whose initial labels lie in one group of `group_y` x `group_x` neighbouring clusters. All
of them reach clusters of one block only: the group and a margin around it. Tiles follow the cluster grid, not the
token grid, so that the blocks of neighbouring tiles are shifted by exactly one group, whatever the ratio of the two
grids; tiles with fewer tokens than others are padded. A tensor over (token, cluster) pairs then has shape (B, tiles,
slots, block).

Tables are computed on the device by integer arithmetic on `arange`: nothing is cached or copied from the host, which
keeps `torch.compile`, `torch.export`, CUDA graphs and threads out of each other's way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Axis(NamedTuple):
    """One side of the grids, cut into tiles."""

    size: int
    clusters: int
    radius: int  # of the window, in clusters
    group: int  # clusters that a tile owns
    tiles: int
    slots: int  # tokens per tile, padding included
    block: int  # clusters that a tile reaches
    margin: int  # clusters of the block before its own group


class Tiling(NamedTuple):
    """Two axes and whether inner products are taken between tokens (`gram`) or between tokens and centroids."""

    rows: Axis
    cols: Axis
    gram: bool


class Tables(NamedTuple):
    """Index tables of a tiling; T tiles, p slots, K clusters per block."""

    tokens: Tensor  # (T, p) token in a slot, clipped to the grid
    valid: Tensor  # (T, p) whether the slot is not padding
    clusters: Tensor  # (T, K) cluster of a block, clipped to the grid
    near: Tensor  # (T, p, K) candidates of a slot
    pooling: Tensor  # (T, p, K) weights of adaptive average pooling
    slots: Tensor  # (N,) where a token lies among the T * p slots


def initial_labels(size: int, clusters: int, device: torch.device) -> Tensor:
    """Cluster row (or column) in which a token row starts, shape (size,): Expedit section 3, nearest-neighbour resize.

    The ratio is rounded to float32 because the released resize does; exact integers differ for a few pairs such as 46
    -> 28.
    """
    ratio = float(np.float32(clusters) / np.float32(size))
    positions = torch.arange(size, device=device, dtype=torch.float32) * ratio
    return positions.floor().clamp(max=clusters - 1).long()


@functools.lru_cache(maxsize=1024)
def _labels(size: int, clusters: int) -> np.ndarray:
    positions = np.arange(size, dtype=np.float32) * (np.float32(clusters) / np.float32(size))
    return np.minimum(positions.astype(np.int64), clusters - 1)


def make_axis(size: int, clusters: int, radius: int, group: int) -> Axis:
    """Cut one side into tiles of `group` clusters; one tile over everything has no margin."""
    group = min(group, clusters)
    tiles = -(-clusters // group)
    slots = int(np.bincount(_labels(size, clusters) // group).max())
    # The margin also covers a cluster's pooling cell, so that pooling is one more (static) assignment inside the
    # tiles.
    margin = max(radius, -(-clusters // size)) if tiles > 1 else 0
    return Axis(size, clusters, radius, group, tiles, slots, group + 2 * margin if tiles > 1 else clusters, margin)


def _axis_tables(axis: Axis, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    labels = initial_labels(axis.size, axis.clusters, device)
    own = torch.arange(axis.tiles, device=device)[:, None] * axis.group
    start = (labels < own).sum(1)
    stop = (labels < own + axis.group).sum(1)
    tokens = start[:, None] + torch.arange(axis.slots, device=device)
    valid = tokens < stop[:, None]
    tokens = tokens.clamp(max=axis.size - 1)
    clusters = own - axis.margin + torch.arange(axis.block, device=device)
    inside = (clusters >= 0) & (clusters < axis.clusters)
    pair = valid[:, :, None] & inside[:, None]
    near = pair & ((labels[tokens][:, :, None] - clusters[:, None]).abs() <= axis.radius)
    first = clusters * axis.size // axis.clusters
    last = -(-(clusters + 1) * axis.size // axis.clusters)
    pooling = pair & (tokens[:, :, None] >= first[:, None]) & (tokens[:, :, None] < last[:, None])
    tile = labels // axis.group
    slot = torch.arange(axis.size, device=device) - start[tile]
    clusters = clusters.clamp(0, axis.clusters - 1)
    return tokens, valid, clusters, near, pooling.to(dtype) / (last - first)[:, None], tile, slot


def make_tables(tiling: Tiling, device: torch.device, dtype: torch.dtype) -> Tables:
    """Index tables of the tiles in row-major order; slots and blocks are row-major as well."""
    rows, cols = tiling.rows, tiling.cols
    y, x = _axis_tables(rows, device, dtype), _axis_tables(cols, device, dtype)
    tiles, slots, block = rows.tiles * cols.tiles, rows.slots * cols.slots, rows.block * cols.block

    def pair(combine: Callable[[Tensor, Tensor], Tensor], i: int, *shape: int) -> Tensor:
        # (Ty, a[, b]) and (Tx, c[, d]) meet as (Ty, Tx, a, c[, b, d]).
        left, right = (y[i][:, None, :, None], x[i][None, :, None])
        if y[i].dim() == 3:
            left, right = left[:, :, :, :, :, None], right[:, :, :, :, None]
        return combine(left, right).reshape(shape)

    tile = y[5][:, None] * cols.tiles + x[5]
    return Tables(
        pair(lambda a, b: a * cols.size + b, 0, tiles, slots),
        pair(torch.logical_and, 1, tiles, slots),
        pair(lambda a, b: a * cols.clusters + b, 2, tiles, block),
        pair(torch.logical_and, 3, tiles, slots, block),
        pair(torch.mul, 4, tiles, slots, block),
        ((tile * rows.slots + y[6][:, None]) * cols.slots + x[6]).flatten(),
    )


def _reach(axis: Axis) -> int:
    """How many tiles away a block still shares clusters."""
    return min(-(-axis.block // axis.group), axis.tiles) - 1


def _cost(rows: Axis, cols: Axis, channels: int, iterations: int, gram: bool, launch: float) -> float:
    """Multiply-adds of a clustering, small products counted as if 16 larger: fitted to CPU timings."""
    slots, block = rows.slots * cols.slots, rows.block * cols.block
    total = rows.tiles * cols.tiles * slots
    small = 1 + 16 / slots
    mean = total * small * (block + 16) * channels
    if not gram:
        return iterations * (2 * mean + 4 * launch)
    shared = [sum(max(a.block - a.group * abs(d), 0) for d in range(-_reach(a), _reach(a) + 1)) for a in (rows, cols)]
    pairs = (math.prod(2 * _reach(a) + 1 for a in (rows, cols)) + 1) // 2
    products = pairs * total * (slots + 16) * channels
    return products + mean + iterations * (total * small * slots * math.prod(shared) + 2 * pairs * launch)


@functools.lru_cache(maxsize=1024)
def _choose(
    grid: tuple[int, int],
    clusters: tuple[int, int],
    window: int,
    channels: int,
    iterations: int,
    on_cpu: bool,
    gram: bool,
) -> Tiling:
    # Starting an operator costs as much as 1e6 multiply-adds on one core, about 1e8 on a GPU.
    launch = 1e6 if on_cpu else 1e8
    axes = [
        [make_axis(size, count, window // 2, group) for group in sorted({*range(1, min(count, 16) + 1), count})]
        for size, count in zip(grid, clusters, strict=True)
    ]
    options = [Tiling(r, c, g) for r in axes[0] for c in axes[1] for g in ((False, True) if gram else (False,))]
    return min(options, key=lambda t: _cost(t.rows, t.cols, channels, iterations, t.gram, launch))


@torch.compiler.assume_constant_result  # keeps the search and its cache out of traced graphs
def choose_tiling(
    grid: tuple[int, int],
    cluster_grid: tuple[int, int],
    window: int,
    channels: int,
    iterations: int,
    on_cpu: bool,
    gram: bool = True,
) -> Tiling:
    """The cheapest tiling by an operation count; static, so the choice never depends on the data or the batch."""
    return _choose(tuple(grid), tuple(cluster_grid), window, channels, iterations, on_cpu, gram)


def batch_index(index: Tensor, batch: int, stride: int) -> Tensor:
    """Repeat a table for every image of a batch whose rows are stacked `stride` apart; 1-D."""
    return (torch.arange(batch, device=index.device)[:, None] * stride + index.flatten()).flatten()


class Tiled:
    """Tokens laid out in tiles, with the gathers and sums between tiles and the cluster grid."""

    def __init__(self, tiling: Tiling, batch: int, device: torch.device, dtype: torch.dtype):
        self.tiling, self.batch = tiling, batch
        self.tables = make_tables(tiling, device, dtype)
        self.tiles, self.slots, self.block = self.tables.near.shape
        self.count = tiling.rows.clusters * tiling.cols.clusters
        self.padded = self.tiles * self.slots != self.tables.slots.shape[0]
        self.clusters = batch_index(self.tables.clusters, batch, self.count)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B * T, p, C)."""
        if self.tiles == 1:
            return x
        index = batch_index(self.tables.tokens, self.batch, x.shape[1])
        return x.flatten(0, 1).index_select(0, index).unflatten(0, (-1, self.slots))

    def gather(self, values: Tensor) -> Tensor:
        """(B * M, ...) to (B * T, K, ...): what every tile's block holds."""
        if self.tiles > 1:
            values = values.index_select(0, self.clusters)
        return values.unflatten(0, (-1, self.block))

    def sum(self, values: Tensor) -> Tensor:
        """(B * T, K, ...) to (B * M, ...): the adjoint of `gather`."""
        values = values.flatten(0, 1)
        if self.tiles == 1:
            return values
        total = values.new_zeros((self.batch * self.count, *values.shape[1:]))
        return total.index_add(0, self.clusters, values)

    def average(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weighted sums (B * M, C) of tiled tokens (B * T, p, C)."""
        return self.sum(weights.transpose(1, 2) @ x)

    def assign(self, x: Tensor, iterations: int, inverse_temperature: float | str) -> Tensor:
        """Iterate the soft assignment of tiled tokens `x`; the last one, normalised per cluster, (B * T, p, K)."""
        shape = (-1, self.tiles, self.slots, self.block)
        products = _gram_products(self, x) if self.tiling.gram else _direct_products(self, x)
        weights = self.tables.pooling.expand(self.batch, -1, -1, -1).flatten(0, 1)
        far, padding = ~self.tables.near, ~self.tables.valid[:, :, None]
        scale: float | Tensor = 0.0 if inverse_temperature == "auto" else inverse_temperature
        for step in range(iterations):
            cross, square = products(weights)
            # The token's own norm is the same for all its clusters: the softmax does not see it.
            score = (2 * cross - square).view(shape)
            if step == 0 and inverse_temperature == "auto":
                norms = x.square().sum(-1).view(-1, self.tiles, self.slots)
                nearest = (norms - score.masked_fill(far, -torch.inf).amax(-1)).clamp(min=0)
                nearest, norms = (v.masked_fill(padding[..., 0], 0).flatten(1) for v in (nearest, norms))
                scale = auto_scale(nearest, norms, self.tables.slots.shape[0])[:, None, None, None]
            weights = (score * scale).masked_fill(far, -torch.inf).softmax(-1)
            if self.padded:
                weights = weights.masked_fill(padding, 0)  # also turns the NaN of a row without candidates into 0
            weights = weights.flatten(0, 1)
            weights = weights / self.gather(self.sum(weights.sum(1)).clamp(min=1e-16))[:, None]
        return weights


# Of 1, 2, 4, 8 and 16 none brings outputs nearer to the dense model's on both tasks of `python -m benchmarks.ideas`.
SHARPNESS = 4.0


def auto_scale(nearest: Tensor, norms: Tensor, count: int) -> Tensor:
    """`inverse_temperature="auto"`: 4 over the mean squared distance to the nearest centroid, per image (B,).

    The floor is what float32 resolves of a squared distance between tokens of this norm, so that constant images stay
    finite.
    """
    floor = norms.sum(1) * (1e-6 / count) + SHARPNESS * torch.finfo(norms.dtype).tiny
    return SHARPNESS / torch.maximum(nearest.sum(1) / count, floor)


def _direct_products(tiled: Tiled, x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x.s and |s|^2 from the centroids themselves: cheapest where many tokens share a cluster."""

    def products(weights: Tensor) -> tuple[Tensor, Tensor]:
        centroids = tiled.average(weights, x)
        cross = x @ tiled.gather(centroids).transpose(1, 2)
        return cross, tiled.gather(centroids.square().sum(-1))[:, None]

    return products


def _gram_products(tiled: Tiled, x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x.s and |s|^2 without centroids: these are weighted sums of tokens, so inner products between tokens suffice.

    They are taken once, between every tile and the half of its neighbours that follow it (the transposes serve the
    others). Neighbours are rows `offset` apart in the flat list of tiles, thus slices and not copies. At the end of a
    grid row, and of an image, such a slice pairs tiles that are no neighbours; their blocks have no cluster inside the
    grid in common, so only columns outside the grid are touched, which the candidate mask removes.
    """
    rows, cols = tiled.tiling.rows, tiled.tiling.cols
    total = x.shape[0]
    pairs = []
    for dy in range(_reach(rows) + 1):
        for dx in range(-_reach(cols) if dy else 0, _reach(cols) + 1):
            offset = dy * cols.tiles + dx
            gram = x[: total - offset] @ x[offset:].transpose(1, 2)
            # Without this an infinite token would reach the neighbouring image of the batch.
            tile = torch.arange(total, device=x.device)[: total - offset] % tiled.tiles
            foreign = (tile + offset >= tiled.tiles)[:, None, None] if tiled.batch != 1 else None
            pairs.append((offset, _overlap(rows, dy), _overlap(cols, dx), gram, foreign))

    def products(weights: Tensor) -> tuple[Tensor, Tensor]:
        cross = pairs[0][3] @ weights
        grid = cross.unflatten(2, (rows.block, cols.block))
        weights_grid = weights.unflatten(2, (rows.block, cols.block))
        for offset, (y, next_y), (x, next_x), gram, foreign in pairs[1:]:
            here, there = slice(0, total - offset), slice(offset, total)
            after, before = weights_grid[there, :, next_y, next_x], weights_grid[here, :, y, x]
            forward, backward = gram @ after.flatten(2), gram.transpose(1, 2) @ before.flatten(2)
            if foreign is not None:
                forward, backward = forward.masked_fill(foreign, 0), backward.masked_fill(foreign, 0)
            grid[here, :, y, x] += forward.view(after.shape)
            grid[there, :, next_y, next_x] += backward.view(before.shape)
        square = tiled.sum((weights * cross).sum(1))
        return cross, tiled.gather(square)[:, None]

    return products


def _overlap(axis: Axis, step: int) -> tuple[slice, slice]:
    """The clusters shared with the tile `step` further, in the own block and in that tile's."""
    shift = axis.group * abs(step)
    ahead, behind = slice(shift, axis.block), slice(0, axis.block - shift)
    return (ahead, behind) if step >= 0 else (behind, ahead)
