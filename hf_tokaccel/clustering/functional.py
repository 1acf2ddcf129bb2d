"""Token clustering and token reconstruction as pure functions on tensors.

The method of "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning" (Expedit): the token
clustering layer of section 3 and the token reconstruction layer that undoes it. Tokens are (B, N, C) in the row-major
order of their grid (H, W); clusters are (B, M, C) in the order of theirs. Everything is computed in float32 (float64
stays) with autocast off, every shape is static given the grids, and no image of a batch sees another.
"""

from __future__ import annotations

import contextlib
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import (
    EXPANSIONS,
    NORMALIZATIONS,
    UserError,
    as_pair,
    check_choice,
    check_grid,
    check_inverse_temperature,
    check_iterations,
    check_neighbors,
    check_window,
)
from .constants import constant, counting, exporting
from .tiling import Tiled, auto_scale, batch_index, choose_tiling, initial_labels

# Up to here a plan holds a weight for every cluster: as fast as a search, and ties at the k-th weight are kept as
# released.
DENSE_CLUSTERS = 128
# Elements held at a time by a search, per image: 16 MB in float32.
CHUNK_ELEMENTS = 2**22


class TokenClusters(NamedTuple):
    """Result of `cluster_tokens`."""

    centroids: Tensor
    """(B, M, C) in the dtype of the tokens."""
    key_centroids: Tensor
    """(B, M, K): what a plan compares with; the same tensor as `centroids` when no keys were given."""


class ReconstructionPlan(NamedTuple):
    """Which clusters a token is rebuilt from; reusable for any number of refined tensors.

    A plan with as many neighbours as clusters (k == M) holds them in the order of the clusters.
    """

    indices: Tensor
    """(B, N, k) int64."""
    weights: Tensor
    """(B, N, k) float32 or float64; not used clusters have weight zero."""
    tokens: Tensor | None = None
    """(B, N, C) tokens at clustering time, for `expansion="delta"` only."""
    centroids: Tensor | None = None
    """(B, M, C) centroids at clustering time, for `expansion="delta"` only."""


def cluster_tokens(
    tokens: Tensor,
    grid: int | tuple[int, int],
    cluster_grid: int | tuple[int, int],
    *,
    iterations: int = 5,
    inverse_temperature: float | str = 0.02,
    window: int = 5,
    keys: Tensor | None = None,
) -> TokenClusters:
    """Cluster the tokens of a grid into a smaller grid: Expedit, section 3, token clustering layer.

    Starting from adaptive average pooling, every iteration assigns each token softly to the clusters within `window`
    of its initial one and makes each centroid the weighted mean of its tokens. A cluster that attracts no token
    becomes zero, as released. Gradients flow through the last weighted mean only; the assignment weights are
    constants. Time and memory are linear in the number of tokens at fixed window.

    Args:
        tokens: (B, N, C) without class tokens.
        grid: (H, W) with H * W = N; a single number is a square.
        cluster_grid: (h, w), or a single number; either side may exceed the token grid's.
        iterations: 0 returns adaptive average pooling.
        inverse_temperature: multiplies the squared distance inside the softmax. `"auto"` takes, for each image, 4
            over the median squared distance between its tokens and their nearest pooled centroid, so that scaling the
            tokens does not change the assignment and a few tokens of huge norm do not either.
        window: odd side, in clusters, of the square of candidates.
        keys: (B, N, K) compared in place of the tokens; the centroids still average the tokens.

    Raises:
        ValueError: a shape or setting is not as described; the message names a value that works.
    """
    grid, cluster_grid = _check_grids(tokens, grid, cluster_grid)
    check_window("window", window)
    check_inverse_temperature(inverse_temperature)
    check_iterations(iterations)
    if keys is not None and (keys.dim() != 3 or keys.shape[:2] != tokens.shape[:2]):
        raise UserError(
            f"keys of shape {tuple(keys.shape)} must be (B, N, K) with the B and N of tokens {tuple(tokens.shape)}, "
            "for example the tokens after a LayerNorm."
        )
    values = [tokens] if keys is None else [tokens, keys]
    with _autocast_off(tokens):
        if iterations == 0:
            means = [_pool(_exact(x), grid, cluster_grid) for x in values]
        else:
            settings = window, values[-1].shape[2], iterations, tokens.device.type == "cpu"
            tiled = Tiled(choose_tiling(grid, cluster_grid, *settings, batch=_known_batch(tokens)), values[-1])
            tiles = [_exact(tiled.split(x)) for x in values]
            mean = mean_token(values[-1].detach())
            compared = (tiled.per_image(tiles[-1].detach()) - mean[:, None]).flatten(0, 1)
            weights, mass = tiled.assign(compared, mean, iterations, inverse_temperature)
            means = [tiled.average(weights, mass, x) for x in tiles]
        means = [mean.to(x.dtype) for mean, x in zip(means, values, strict=True)]
    return TokenClusters(means[0], means[-1])


def plan_reconstruction(
    tokens: Tensor,
    centroids: Tensor,
    *,
    neighbors: int = 20,
    inverse_temperature: float | str = 0.02,
    normalization: str = "l2",
    expansion: str = "soft",
    keys: Tensor | None = None,
    key_centroids: Tensor | None = None,
    grid: int | tuple[int, int] | None = None,
    cluster_grid: int | tuple[int, int] | None = None,
    window: int | None = None,
) -> ReconstructionPlan:
    """Find the clusters and weights that every token is rebuilt from: Expedit, section 3, token reconstruction layer.

    Weights are exp(-T d) of the squared distances d, kept for the nearest clusters and normalised. The smallest
    distance is subtracted first, which cancels in the normalisation but keeps far tokens from becoming zero. Weights
    are differentiable with respect to tokens and centroids (or the keys that replace them), except for
    `expansion="nearest"`.

    Ties at the last neighbour are all kept, as released, up to 128 clusters; with more clusters exactly `neighbors`
    are kept and ties are broken arbitrarily.

    Args:
        tokens: (B, N, C) just before clustering.
        centroids: (B, M, C) from `cluster_tokens`, before any later block.
        neighbors: -1 and anything above M mean all clusters.
        inverse_temperature: multiplies the squared distance. `"auto"` takes, for each image, 4 over the median squared
            distance between its tokens and their nearest centroid.
        normalization: `"l2"` divides by the Euclidean norm of the weights, as released (a token comes out scaled by up
            to sqrt(neighbors)); `"l1"` by their sum, a weighted mean.
        expansion: `"soft"`; `"nearest"` copies the nearest cluster; `"delta"` adds the weighted mean of the clusters'
            change to the token (ours, not the paper's; always `"l1"`).
        keys: (B, N, K) compared in place of the tokens, together with `key_centroids` (B, M, K).
        key_centroids: as `TokenClusters.key_centroids`.
        grid: (H, W), needed with `window`.
        cluster_grid: (h, w), needed with `window`.
        window: odd side, in clusters, of the square around a token's initial cluster that is searched: linear in time
            and memory. None searches all clusters as released, in chunks of tokens: linear in memory only.

    Raises:
        ValueError: a shape or setting is not as described; the message names a value that works.
    """
    _check_plan(tokens, centroids, keys, key_centroids)
    check_neighbors(neighbors)
    check_choice("normalization", normalization, NORMALIZATIONS, "l1")
    check_choice("expansion", expansion, EXPANSIONS, "soft")
    check_inverse_temperature(inverse_temperature)
    if window is not None:
        grid, cluster_grid = _check_window_grids(tokens, centroids, grid, cluster_grid, window)
    count = centroids.shape[1]
    limit = count if window is None else min(window, cluster_grid[0]) * min(window, cluster_grid[1])
    kept = min(limit, neighbors if neighbors > 0 else count)
    with _autocast_off(tokens):
        x, s = (tokens, centroids) if keys is None else (keys, key_centroids)
        mean = mean_token(x.detach())
        x, s = x - mean, s - mean
        if expansion == "nearest":
            kept, x, s = 1, x.detach(), s.detach()
        dense = (count <= DENSE_CLUSTERS and expansion != "nearest") or kept == count
        if dense:
            distances = _all_distances(x, s)
            indices = counting(x, count).expand(*x.shape[:2], -1)
            if window is not None:
                distances = distances.masked_fill(~constant(x, _near, grid, cluster_grid, window), torch.inf)
        elif window is None:
            distances, indices = _search(x, s, kept)
        else:
            distances, indices = _search_window(x, s, kept, grid, cluster_grid, window)
        if expansion == "nearest":
            return ReconstructionPlan(indices, torch.ones_like(distances))
        if kept < distances.shape[-1]:
            last = _last_kept(distances.detach(), x.detach(), kept)
            distances = distances.masked_fill(distances > last, torch.inf)
        if inverse_temperature == "auto":
            norms = x.detach().square().sum(-1)
            scale = auto_scale(distances.detach().amin(-1) + norms, norms, mean)[:, None, None]
        else:
            scale = inverse_temperature
        if normalization == "l1" or expansion == "delta":
            weights = (distances * -scale).softmax(-1)
        else:
            # The root of what sums up to one when squared; by logarithms, since a root has no slope at zero.
            weights = ((distances * (-2 * scale)).log_softmax(-1) / 2).exp()
    return ReconstructionPlan(indices, weights, *((tokens, centroids) if expansion == "delta" else ()))


def reconstruct_tokens(refined: Tensor, plan: ReconstructionPlan) -> Tensor:
    """Rebuild the tokens of a plan from its refined clusters; (B, N, C') in the dtype of `refined`.

    Weighted sums of `refined` for `"soft"` and `"nearest"` (Expedit, section 3); for `"delta"` the tokens plus the
    weighted mean of the clusters' change.

    Args:
        refined: (B, M, C'); C' is free except for `"delta"`, which needs the shape of the centroids.

    Raises:
        ValueError: `refined` does not fit the plan.
    """
    if refined.dim() != 3 or refined.shape[0] != plan.indices.shape[0]:
        raise UserError(
            f"refined of shape {tuple(refined.shape)} must be (B, M, C') with the B of the plan's indices "
            f"{tuple(plan.indices.shape)}, for example the clusters after the last clustered block."
        )
    delta = plan.tokens is not None
    if delta and refined.shape != plan.centroids.shape:
        raise UserError(
            f"refined of shape {tuple(refined.shape)} must have the centroids' shape {tuple(plan.centroids.shape)} "
            'for expansion="delta"; use expansion="soft" for other outputs such as logits.'
        )
    with _autocast_off(refined):
        z = _exact(refined)
        if delta:
            z = z - plan.centroids.to(z.dtype)
        out = _weighted_sum(z, plan.indices, plan.weights.to(z.dtype))
        if delta:
            out = plan.tokens.to(z.dtype) + out
        return out.to(refined.dtype)


def _weighted_sum(z: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    batch, count, channels = z.shape
    kept = indices.shape[-1]
    if kept == count and count > 1:
        return weights @ z
    if kept == 1:
        return z.gather(1, indices.expand(-1, -1, channels)) * weights
    if exporting():
        # One neighbour at a time: plain gathers, which every exported format has, and memory linear in the tokens.
        parts = (
            z.gather(1, indices[..., i : i + 1].expand(-1, -1, channels)) * weights[..., i : i + 1]
            for i in range(kept)
        )
        return sum(parts)
    # Gathers and sums row by row: a hundred times faster on a CPU than a gather of (B, N, k, C') followed by a
    # product.
    rows, starts = indices.flatten(), constant(z, _starts, indices[..., 0].numel(), kept)
    if batch != 1:
        rows = (indices + constant(z, first_rows, batch, count)).flatten()
    out = F.embedding_bag(rows, z.flatten(0, 1), starts, per_sample_weights=weights.flatten(), mode="sum")
    return out.unflatten(0, (batch, -1))


def _all_distances(x: Tensor, s: Tensor) -> Tensor:
    """|s|^2 - 2 x.s, squared distances without the token's own norm; (B, n, M)."""
    return torch.baddbmm(s.square().sum(-1)[:, None], x, s.transpose(1, 2), alpha=-2)


def _smallest(distances: Tensor, kept: int, on_cpu: bool) -> tuple[Tensor, Tensor]:
    """The `kept` smallest of the last dimension and their indices, in no particular order."""
    if kept == 1:
        if torch.compiler.is_compiling():
            return tuple(part[..., None] for part in first_least(distances))
        return distances.min(-1, keepdim=True)
    count = distances.shape[-1]
    size = next((size for size in (8, 7, 6, 5, 4) if count % size == 0 and count >= 3 * size * kept), 0)
    if size == 0 or not on_cpu:
        return distances.topk(kept, largest=False, sorted=False)
    # Exact in two steps, twice as fast: the k smallest lie in the k groups with the smallest minima.
    groups = distances.detach().unflatten(-1, (-1, size)).amin(-1).topk(kept, largest=False, sorted=False)[1]
    candidates = (groups[..., None] * size + torch.arange(size, device=groups.device)).flatten(-2)
    values, positions = distances.gather(-1, candidates).topk(kept, largest=False, sorted=False)
    return values, candidates.gather(-1, positions)


def first_least(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least of the last dimension and the first place that has it.

    The compiler of PyTorch 2.10 gives wrong places for `argmin` and `min` of sums.
    """
    least = values.amin(-1, keepdim=True)
    places = torch.arange(values.shape[-1], dtype=torch.int32, device=values.device)
    return least[..., 0], torch.where(values == least, places, values.shape[-1] - 1).amin(-1).long()


def _last_kept(distances: Tensor, x: Tensor, kept: int) -> Tensor:
    """The k-th smallest distance plus its rounding error: equal clusters may differ by that in a matrix product."""
    last = distances.topk(kept, largest=False, sorted=False)[0].amax(-1, keepdim=True)
    # The token's own norm is not in the distances.
    norms = x.square().sum(-1, keepdim=True)
    return last + 4 * torch.finfo(last.dtype).eps * (last + 2 * norms)


def _search(x: Tensor, s: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    step = max(1, CHUNK_ELEMENTS // s.shape[1])
    on_cpu = x.device.type == "cpu"
    found = [_smallest(_all_distances(part, s), kept, on_cpu) for part in x.split(step, 1)]
    return _join(found)


def _search_window(x: Tensor, s: Tensor, kept: int, grid, cluster_grid, window: int) -> tuple[Tensor, Tensor]:
    on_cpu = x.device.type == "cpu"
    settings = window, x.shape[2], 1, on_cpu, False
    tiled = Tiled(choose_tiling(grid, cluster_grid, *settings, batch=_known_batch(x)), x)
    tables = tiled.tables
    step = max(1, CHUNK_ELEMENTS // (x.shape[2] * (tiled.block + tiled.slots)))
    found = []
    for first in range(0, tiled.tiles, step):
        part = slice(first, first + step)
        clusters = tables.clusters[part]
        here, there = _take(x, tables.tokens[part]), _take(s, clusters)
        distances = there.square().sum(-1)[:, :, None] - 2 * (here @ there.transpose(2, 3)) - tables.far[part]
        value, index = _smallest(distances, kept, on_cpu)
        index = clusters[:, None].expand(-1, tiled.slots, -1).expand(x.shape[0], -1, -1, -1).gather(3, index)
        found.append((value.flatten(1, 2), index.flatten(1, 2)))
    values, indices = _join(found)
    return _take(values, tables.slots), _take(indices, tables.slots)


def _take(x: Tensor, table: Tensor) -> Tensor:
    """Rows of (B, N, ...) by a table; (B, *table.shape, ...). Selecting is fast in the first dimension only."""
    index = table.flatten() if x.shape[0] == 1 else batch_index(table, x.shape[0], x.shape[1])
    return x.flatten(0, 1).index_select(0, index).unflatten(0, (x.shape[0], *table.shape))


def _join(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(found) == 1:
        return found[0]
    values, indices = zip(*found, strict=True)
    return torch.cat(values, 1), torch.cat(indices, 1)


def first_rows(batch: int, count: int, device: torch.device) -> Tensor:
    """(B, 1, 1) where each image of a batch begins whose rows lie one after the other."""
    return torch.arange(batch, device=device)[:, None, None] * count


def _starts(count: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) * step


def _near(grid: tuple[int, int], cluster_grid: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """(N, M): whether a cluster lies within the window of a token's initial one."""
    rows, cols = (
        (initial_labels(size, count, device)[:, None] - torch.arange(count, device=device)).abs() <= window // 2
        for size, count in zip(grid, cluster_grid, strict=True)
    )
    return (rows[:, None, :, None] & cols[None, :, None]).reshape(grid[0] * grid[1], -1)


def _pool(x: Tensor, grid: tuple[int, int], cluster_grid: tuple[int, int]) -> Tensor:
    maps = x.unflatten(1, grid).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(maps, cluster_grid).permute(0, 2, 3, 1).flatten(1, 2)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def mean_token(x: Tensor) -> Tensor:
    """(B, 1, C) in float32 or better.

    Distances do not change where it is subtracted, and a common offset would cost them most of their digits.
    """
    return x.mean(1, keepdim=True, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _known_batch(x: Tensor) -> int:
    """For the choice of tiles: graphs may be for any batch, and starting operators is cheap in them."""
    return 8 if torch.compiler.is_compiling() or x.device.type == "cpu" else x.shape[0]


def pulls(x: Tensor) -> bool:
    """Whether sums are formed by their readers, which on a GPU is the same bit by bit in every run, unlike atomics."""
    return x.device.type == "cuda" and not exporting()


def _autocast_off(x: Tensor) -> contextlib.AbstractContextManager:
    # The context is entered only where it matters: exported graphs stay free of an operator that wraps everything.
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def _check_grids(tokens: Tensor, grid: Any, cluster_grid: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    grid, cluster_grid = _checked("grid", grid), _checked("cluster_grid", cluster_grid)
    if tokens.dim() != 3 or tokens.shape[1] != grid[0] * grid[1]:
        raise UserError(
            f"tokens of shape {tuple(tokens.shape)} must be (B, N, C) with N = {grid[0] * grid[1]} for grid={grid}; "
            "remove class tokens first."
        )
    return grid, cluster_grid


def _checked(name: str, grid: Any) -> tuple[int, int]:
    try:
        # Constants even where sides come from NumPy, or torch.compile made the image size symbolic.
        sides = tuple(operator.index(side) for side in as_pair(grid))
    except TypeError:
        sides = grid
    check_grid(name, sides)
    return sides


def _check_plan(tokens, centroids, keys, key_centroids) -> None:
    if (keys is None) != (key_centroids is None):
        given, missing = ("keys", "key_centroids") if key_centroids is None else ("key_centroids", "keys")
        raise UserError(
            f"{given} was given without {missing}; give both, for example TokenClusters.key_centroids, or neither."
        )
    for left, right, names in (
        (tokens, centroids, "tokens and centroids"),
        (keys, key_centroids, "keys and key_centroids"),
    ):
        if left is None:
            continue
        if left.dim() != 3 or right.dim() != 3 or left.shape[0] != right.shape[0] or left.shape[2] != right.shape[2]:
            raise UserError(
                f"{names} of shapes {tuple(left.shape)} and {tuple(right.shape)} must be (B, N, C) and (B, M, C), "
                "for example what went into cluster_tokens and what came out."
            )
    if keys is not None and (keys.shape[1] != tokens.shape[1] or key_centroids.shape[1] != centroids.shape[1]):
        raise UserError(
            f"keys {tuple(keys.shape)} and key_centroids {tuple(key_centroids.shape)} must have as many rows as "
            f"tokens {tuple(tokens.shape)} and centroids {tuple(centroids.shape)}, for example those of one call."
        )


def _check_window_grids(tokens, centroids, grid, cluster_grid, window) -> tuple[tuple, tuple]:
    check_window("window", window)
    if grid is None or cluster_grid is None:
        raise UserError(
            f"window={window} needs grid and cluster_grid, got grid={grid} and cluster_grid={cluster_grid}; "
            "give both as to cluster_tokens, or window=None to search all clusters."
        )
    grid, cluster_grid = _check_grids(tokens, grid, cluster_grid)
    if centroids.shape[1] != cluster_grid[0] * cluster_grid[1]:
        raise UserError(
            f"cluster_grid={cluster_grid} holds {cluster_grid[0] * cluster_grid[1]} clusters but there are "
            f"{centroids.shape[1]} centroids; give the cluster_grid that cluster_tokens had."
        )
    return grid, cluster_grid
