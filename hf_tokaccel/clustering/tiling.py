"""Tiles: how a token meets only the clusters that it can reach.

A tile is the set of tokens whose initial labels lie in one group of `group_y` x `group_x` neighbouring clusters. All
of them reach clusters of one block only: the group and a margin around it. Tiles follow the cluster grid, not the
token grid, so that the blocks of neighbouring tiles are shifted by exactly one group, whatever the ratio of the two
grids; tiles with fewer tokens than others are padded. A tensor over (token, cluster) pairs then has shape (B, tiles,
slots, block).

Tables are computed on the device by integer arithmetic on `arange` and never copied from the host; `constants` says
when they are kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import constant, exporting


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
    """Index tables of a tiling; T tiles, p slots, K clusters per block; rows of a batch B lie one after the other."""

    tokens: Tensor  # (T, p) token in a slot, clipped to the grid
    valid: Tensor  # (T, p, 1) 1 where the slot is not padding, else 0
    clusters: Tensor  # (T, K) cluster of a block, clipped to the grid
    far: Tensor  # (T, p, K) -inf where a cluster is no candidate of a slot that is not padding, else 0
    pooling: Tensor  # (T, p, K) weights of adaptive average pooling
    slots: Tensor  # (N,) where a token lies among the T * p slots
    token_rows: Tensor  # (B * T * p,) token of a slot
    cluster_rows: Tensor  # (B * T * K,) cluster of a block
    cells: Tensor  # (B * M * R,) row of B * T * K that holds a cluster, tile by tile; 0 where fewer than R do
    starts: Tensor  # (B * M,) where a cluster begins in `cells`


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


def _holders(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(M, R): tiles whose blocks hold a cluster, the place in the block, and whether there is such a tile."""
    number = torch.arange(axis.clusters, device=device)[:, None]
    most = -(-axis.block // axis.group) if axis.tiles > 1 else 1
    tile = (number + axis.margin) // axis.group - torch.arange(most, device=device) if axis.tiles > 1 else 0 * number
    place = number + axis.margin - tile * axis.group
    return tile, place, (tile >= 0) & (tile < axis.tiles) & (place < axis.block)


def make_tables(tiling: Tiling, batch: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """Index tables of the tiles in row-major order; slots and blocks are row-major as well."""
    rows, cols = tiling.rows, tiling.cols
    y, x = _axis_tables(rows, device, dtype), _axis_tables(cols, device, dtype)
    tiles, slots, block = rows.tiles * cols.tiles, rows.slots * cols.slots, rows.block * cols.block

    def pair(combine: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, *shape: int) -> Tensor:
        # (Ty, a[, b]) and (Tx, c[, d]) meet as (Ty, Tx, a, c[, b, d]).
        deep = left.dim() == 3
        left, right = left[:, None, :, None], right[None, :, None]
        if deep:
            left, right = left[:, :, :, :, :, None], right[:, :, :, :, None]
        return combine(left, right).reshape(shape)

    tokens = pair(lambda a, b: a * cols.size + b, y[0], x[0], tiles, slots)
    valid = pair(torch.logical_and, y[1], x[1], tiles, slots, 1)
    clusters = pair(lambda a, b: a * cols.clusters + b, y[2], x[2], tiles, block)
    near = pair(torch.logical_and, y[3], x[3], tiles, slots, block)
    tile = y[5][:, None] * cols.tiles + x[5]
    # Cell 0 is outside of the grid wherever a cluster lies in more than one tile: none needs it.
    (ty, py, held_y), (tx, px, held_x) = _holders(rows, device), _holders(cols, device)
    cells = pair(lambda a, b: a * cols.tiles + b, ty, tx, -1, ty.shape[1] * tx.shape[1])
    cells = cells * block + pair(lambda a, b: a * cols.block + b, py, px, *cells.shape)
    held = pair(torch.logical_and, held_y, held_x, *cells.shape).expand(batch, -1, -1)
    return Tables(
        tokens,
        valid.to(dtype),
        clusters,
        torch.zeros(near.shape, dtype=dtype, device=device).masked_fill(valid & ~near, -torch.inf),
        pair(torch.mul, y[4], x[4], tiles, slots, block),
        ((tile * rows.slots + y[6][:, None]) * cols.slots + x[6]).flatten(),
        batch_index(tokens, batch, rows.size * cols.size),
        batch_index(clusters, batch, rows.clusters * cols.clusters),
        batch_index(cells, batch, tiles * block).masked_fill(~held.flatten(), 0),
        torch.arange(batch * len(cells), device=device) * cells.shape[1],
    )


def _reach(axis: Axis) -> int:
    """How many tiles away a block still shares clusters."""
    return min(-(-axis.block // axis.group), axis.tiles) - 1


def _cost_on_gpu(tiling: Tiling, channels: int, iterations: int, batch: int) -> float:
    """Multiply-adds of a clustering on a GPU, estimated: nothing was measured.

    One launch of 4 µs takes as long as 1e8 of them. What is written for every cell of a block, five times read or
    written again in an iteration, takes as long as 200.
    """
    rows, cols = tiling.rows, tiling.cols
    tiles, slots, block = rows.tiles * cols.tiles, rows.slots * cols.slots, rows.block * cols.block
    mean = tiles * slots * block * channels
    if tiling.gram:
        return batch * (tiles * slots * slots * (channels + iterations * block) + mean) + iterations * 14e8
    return batch * iterations * (2 * mean + 200 * tiles * block * channels) + iterations * 9e8


def _cost(tiling: Tiling, channels: int, iterations: int) -> float:
    """Multiply-adds of a clustering on a CPU, small products counted as if 16 larger: fitted to timings.

    Starting an operator costs as much as 1e6 on one core.
    """
    rows, cols, gram = tiling
    launch = 1e6
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
    batch: int,
) -> Tiling:
    axes = [
        [make_axis(size, count, window // 2, group) for group in sorted({*range(1, min(count, 16) + 1), count})]
        for size, count in zip(grid, clusters, strict=True)
    ]
    options = [Tiling(r, c, g) for r in axes[0] for c in axes[1] for g in ((False, True) if gram else (False,))]
    if on_cpu:
        return min(options, key=lambda t: _cost(t, channels, iterations))
    # Between tiles, products of tokens with tokens take too many launches.
    options = [t for t in options if not t.gram or t.rows.tiles * t.cols.tiles == 1]
    return min(options, key=lambda t: _cost_on_gpu(t, channels, iterations, batch))


@torch.compiler.assume_constant_result  # keeps the search and its cache out of traced graphs
def choose_tiling(
    grid: tuple[int, int],
    cluster_grid: tuple[int, int],
    window: int,
    channels: int,
    iterations: int,
    on_cpu: bool,
    gram: bool = True,
    batch: int = 1,
) -> Tiling:
    """The cheapest tiling by an operation count; static, so the choice never depends on the data.

    Args:
        batch: grids that are clustered at once, which matters on a GPU only.
    """
    return _choose(tuple(grid), tuple(cluster_grid), window, channels, iterations, on_cpu, gram, batch)


def batch_index(index: Tensor, batch: int, stride: int) -> Tensor:
    """Repeat a table for every image of a batch whose rows are stacked `stride` apart; 1-D."""
    return (torch.arange(batch, device=index.device)[:, None] * stride + index.flatten()).flatten()


class Tiled:
    """Tokens laid out in tiles, with the gathers and sums between tiles and the cluster grid.

    Args:
        like: (B, N, C) of the device and dtype of what is computed, or of half its precision.
    """

    def __init__(self, tiling: Tiling, like: Tensor):
        self.tiling, self.batch = tiling, like.shape[0]
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.tables: Tables = constant(like, make_tables, tiling, self.batch, dtype)
        self.tiles, self.slots, self.block = self.tables.far.shape
        self.count = tiling.rows.clusters * tiling.cols.clusters
        self.padded = self.tiles * self.slots != self.tables.slots.shape[0]

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B * T, p, C)."""
        if self.tiles == 1:
            return x
        return x.flatten(0, 1).index_select(0, self.tables.token_rows).unflatten(0, (-1, self.slots))

    def without_padding(self, weights: Tensor) -> Tensor:
        """Weights (B * T, p, K) that are 0 where a slot is padding."""
        return (self.per_image(weights) * self.tables.valid).flatten(0, 1) if self.padded else weights

    def gather(self, values: Tensor) -> Tensor:
        """(B * M, ...) to (B * T, K, ...): what every tile's block holds."""
        if self.tiles > 1:
            values = values.index_select(0, self.tables.cluster_rows)
        return values.unflatten(0, (-1, self.block))

    def sum(self, values: Tensor) -> Tensor:
        """(B * T, K[, C]) to (B * M[, C]): the adjoint of `gather`."""
        values = values.flatten(0, 1)
        if self.tiles == 1:
            return values
        if values.dim() == 2 and not exporting():
            # Each cluster adds up the tiles that hold it, in their order; the other form does so in any on a GPU.
            shared = self.tables.cells.shape != self.tables.starts.shape
            padding = 0 if shared else None
            return F.embedding_bag(self.tables.cells, values, self.tables.starts, mode="sum", padding_idx=padding)
        total = values.new_zeros((self.batch * self.count, *values.shape[1:]))
        return total.index_add(0, self.tables.cluster_rows, values)

    def per_image(self, x: Tensor) -> Tensor:
        """(B * T, ...) to (B, T, ...)."""
        return x.unflatten(0, (self.batch, self.tiles))

    def average(self, weights: Tensor, mass: Tensor, x: Tensor) -> Tensor:
        """Weighted means (B, M, C) of tiled tokens (B * T, p, C); `mass` (B * M, 1) is what the weights sum up to."""
        total = self.sum(weights.to(x.dtype).transpose(1, 2) @ x)
        return (total / mass.to(x.dtype).clamp(min=1e-16)).unflatten(0, (self.batch, self.count))

    def assign(self, x: Tensor, mean: Tensor, iterations: int, temperature: float | str) -> tuple[Tensor, Tensor]:
        """Iterate the soft assignment; the last one (B * T, p, K), and what its weights sum up to (B * M, 1).

        Args:
            x: (B * T, p, C) tiled tokens less `mean`, the mean token (B, 1, C) of each image.
        """
        scores = (_gram_scores if self.tiling.gram else _direct_scores)(self, x, mean)
        weights = self.tables.pooling.expand(self.batch, -1, -1, -1).flatten(0, 1)
        for step in range(iterations):
            score = scores(weights, 1.0 if temperature == "auto" else temperature)
            if temperature == "auto":
                if step == 0:
                    rate = self._auto_rate(x, mean, score)
                score = self.per_image(score).mul(rate).flatten(0, 1)
            weights = score.softmax(-1)
        weights = self.without_padding(weights)
        return weights, self.sum(weights.sum(1)[..., None])

    def _auto_rate(self, x: Tensor, mean: Tensor, score: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1).square()
        nearest = norms - score.amax(-1)
        slots = self.tables.slots
        nearest, norms = (self.per_image(v).flatten(1).index_select(1, slots) for v in (nearest, norms))
        return auto_scale(nearest, norms, mean)[:, None, None, None]


# Of 1, 2, 4, 8 and 16 none brings outputs nearer to the dense model's on both tasks of `python -m benchmarks.ideas`.
SHARPNESS = 4.0


def auto_scale(nearest: Tensor, norms: Tensor, mean: Tensor) -> Tensor:
    """`inverse_temperature="auto"`: 4 over the median squared distance to the nearest centroid, per image (B,).

    The median is over the tokens whose distance is more than what rounding leaves, which those of a padded border are
    not; so neither these nor a few tokens of huge norm have a say in it.

    Args:
        nearest: (B, N) squared distances.
        norms: (B, N) squared norms of the tokens less the mean token.
        mean: (B, 1, C) mean token.
    """
    unresolved = nearest <= norms * (8 * torch.finfo(norms.dtype).eps)
    resolved = nearest.masked_fill(unresolved, 0).sort(dim=1, descending=True).values
    middle = (resolved > 0).sum(1, keepdim=True) >> 1
    median = resolved.gather(1, middle)[:, 0]
    # Far below what float32 resolves: it keeps images finite that are constant, or as good as that.
    offset = torch.linalg.vector_norm(mean, dim=(1, 2))
    floor = 1e-13 * torch.addcmul(norms.mean(1), offset, offset)
    return SHARPNESS / torch.maximum(median, floor).clamp(min=SHARPNESS * torch.finfo(norms.dtype).tiny)


Scores = Callable[[Tensor, float], Tensor]
"""From weights (B * T, p, K) and a factor: minus the squared distances times it, less what is the same for all K."""


def _direct_scores(tiled: Tiled, x: Tensor, mean: Tensor) -> Scores:
    """From the centroids themselves: cheapest where many tokens share a cluster, and few launches."""
    tables, width = tiled.tables, x.shape[2]
    # A further column sums up the weights; four of them keep rows aligned.
    valid = tables.valid.expand(tiled.batch, -1, -1, 4).flatten(0, 1)
    wide = torch.cat((x, valid), 2)
    if tiled.padded:
        wide.mul_(valid[..., :1])
    # A cluster without tokens lies at zero as released: as if a token of hardly any weight were there.
    zero = F.pad(mean, (0, 4), value=-1.0) * -1e-16

    def scores(weights: Tensor, scale: float) -> Tensor:
        total = tiled.sum(weights.transpose(1, 2) @ wide).unflatten(0, (tiled.batch, -1)) + zero
        centroids = tiled.gather((total[..., :width] / total[..., width : width + 1]).flatten(0, 1))
        norms = tiled.per_image(torch.linalg.vector_norm(centroids, dim=-1))[:, :, None]
        # The token's own norm is the same for all its clusters: the softmax does not see it.
        if torch.compiler.is_compiling():
            # The compiler makes one kernel of the sum and the softmax that follows.
            cross = tiled.per_image(x @ centroids.transpose(1, 2))
            return (tables.far - norms.square() * scale + cross * (2 * scale)).flatten(0, 1)
        score = torch.addcmul(tables.far, norms, norms, value=-scale).flatten(0, 1)
        return score.baddbmm_(x, centroids.transpose(1, 2), alpha=2 * scale)

    return scores


def _gram_scores(tiled: Tiled, x: Tensor, mean: Tensor) -> Scores:
    """Without centroids: products with these are weighted sums of products between tokens."""
    products = _gram_products(tiled, x)
    # Minus the squared distance to zero, where a cluster without tokens lies as released.
    shifted = tiled.per_image(x) @ mean[:, None].transpose(2, 3)
    to_zero = -(2 * shifted + mean.square().sum(-1)[:, None, :, None])

    def scores(weights: Tensor, scale: float) -> Tensor:
        weights = tiled.without_padding(weights)
        mass = tiled.sum(weights.sum(1))
        weights = weights / tiled.gather(mass.clamp(min=1e-16))[:, None]
        cross, square = products(weights)
        score = tiled.per_image(2 * cross - square)
        empty = tiled.per_image(tiled.gather(mass < 1e-16))[:, :, None]
        return torch.where(empty, to_zero, score).mul(scale).add(tiled.tables.far).flatten(0, 1)

    return scores


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
