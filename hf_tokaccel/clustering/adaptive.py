"""Adaptive clusters: regions of free shape and a fixed count, and attention that knows what each stands for.

Bipartite matching in a few static rounds, as Token Merging (Bolya et al., ICLR 2023) has it, by the cost of Ward
(1963). Attention with sizes is the proportional attention of the same paper, and `"delta"` adds the change of a region
to each of its tokens (IPCV, arXiv 2512.18747, has a form of it). Tokens are (B, N, C) without class tokens, regions
(B, M, C). Everything is computed in float32 (float64 stays) with autocast off, every shape is static given N and M,
nothing is random, and ties are broken by order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, is_count, is_number, require
from .functional import _autocast_off, _exact, mean_token, pulls
from .pulling import is_half, partition_by_pulling, pulled_means
from .regions import TokenRegions, choose, matching_rounds, tile_order

EXPANSIONS = ("delta", "nearest")


def partition_tokens(
    keys: Tensor,
    count: int,
    *,
    share: float = 0.2,
    rows: TokenRegions | None = None,
    grid: tuple[int, int] | None = None,
    tile: int | None = None,
) -> TokenRegions:
    """Joins tokens that are alike until `count` regions are left.

    In every round the regions at even places each choose the region at an odd place that costs least to join, and the
    cheapest choices are carried out. No gradient flows through the choice.

    Args:
        keys: (B, N, K) what is compared, such as tokens after the next LayerNorm.
        count: regions M, 1 to N.
        share: of the regions that a round joins at most, above 0 and up to 0.5.
        rows: regions to go on from; None begins with single tokens.
        grid: (H, W) of the tokens, for `tile`.
        tile: side in tokens of the tiles inside of which regions choose, even; time and memory then grow linearly
            with N. None compares all with all. Regions to go on from keep their order, and groups of so many take the
            place of tiles.

    Raises:
        ValueError: on a count, share, shape or tile outside of what is written above.
    """
    _check_partition(keys, count, share, rows, grid, tile)
    batch, tokens = keys.shape[:2]
    with torch.no_grad(), _autocast_off(keys):
        if pulls(keys):
            return partition_by_pulling(keys.detach(), count, share, rows, grid, tile)
        x = keys.detach()
        x = x - mean_token(x)
        if rows is None:
            order = None if tile is None else tile_order(grid, tile, keys.device)
            place = torch.arange(tokens, device=keys.device)
            if order is not None:
                x = x.index_select(1, order)
                place = torch.empty_like(place).index_copy(0, order, place)
            member = place.expand(batch, -1)
            sizes, means = x.new_ones(batch, tokens), x
        else:
            member = rows.rows
            sizes, means = rows.sizes.to(x.dtype), _means(x, rows)
        for joined in matching_rounds(means.shape[1], count, share):
            moved, sizes, means = _join(sizes, means, joined, None if tile is None else tile * tile)
            member = moved.gather(1, member)
        return TokenRegions(member.contiguous(), sizes.long())


def average_tokens(tokens: Tensor, regions: TokenRegions) -> Tensor:
    """Means (B, M, C) of the tokens (B, N, C) of each region, in the dtype of the tokens.

    Raises:
        ValueError: when shapes do not go together.
    """
    _check_rows("tokens", tokens, regions.rows)
    with _autocast_off(tokens):
        if pulls(tokens):
            return pulled_means(tokens, regions)
        return _means(_exact(tokens), regions).to(tokens.dtype)


def reconstruct_regions(
    refined: Tensor,
    regions: TokenRegions,
    *,
    expansion: str = "delta",
    tokens: Tensor | None = None,
    centroids: Tensor | None = None,
) -> Tensor:
    """All tokens (B, N, C) from what became of the regions, by one gather.

    Args:
        refined: (B, M, C) regions after the blocks.
        regions: which token is of which.
        expansion: `"delta"` adds the change of the region to the token as it was, `"nearest"` copies the region.
        tokens: (B, N, C) as they were, for `"delta"`.
        centroids: (B, M, C) regions as they were, from `average_tokens`, for `"delta"`.

    Raises:
        ValueError: on an unknown expansion, `"delta"` without tokens and centroids, or shapes that do not go together.
    """
    check_choice("expansion", expansion, EXPANSIONS, "delta")
    fits = refined.dim() == 3 and refined.shape[:2] == regions.sizes.shape
    allowed = f"(B, M, C) with (B, M) = {tuple(regions.sizes.shape)} of the regions"
    require(fits, "refined.shape", tuple(refined.shape), allowed, (*regions.sizes.shape, 384))
    if expansion == "nearest":
        return _take(refined, regions.rows)
    given = tokens is not None and centroids is not None
    require(given, "expansion", expansion, "'nearest' where tokens and centroids are not given", "nearest")
    _check_rows("tokens", tokens, regions.rows)
    with _autocast_off(refined):
        if pulls(refined) and is_half(refined, tokens):
            # Rounded as what the blocks of such a model add is, so that the largest tensors stay half as large.
            change = (refined.float() - centroids).to(refined.dtype)
            return _take(change, regions.rows).add_(tokens)
        # What is half precision is widened inside of the operators.
        change = _exact(refined) - centroids
        # In place: the sum is as large as all tokens.
        return _take(change, regions.rows).add_(tokens).to(refined.dtype)


def size_bias(sizes: Tensor, prefix: int = 0) -> Tensor:
    """Bias (B, 1, 1, prefix + M) to attention logits: log of the tokens that each key stands for, 0 for the prefix.

    `scaled_dot_product_attention` takes it as `attn_mask`, in the dtype of the query.

    Args:
        sizes: (B, M) tokens of each region.
        prefix: keys before the regions, such as class tokens.
    """
    return F.pad(sizes.float().log(), (prefix, 0))[:, None, None]


def append_sizes(
    query: Tensor, key: Tensor, sizes: Tensor, prefix: int = 0, multiple: int = 8
) -> tuple[Tensor, Tensor]:
    """Query and key with one more feature whose product is the bias of `size_bias`, for kernels that take no mask.

    Attention has to run with the scale 1 / sqrt(d) of the features that came in.

    Args:
        query: (B, heads, L, d).
        key: (B, heads, prefix + M, d).
        sizes: (B, M) tokens of each region.
        prefix: keys before the regions.
        multiple: features are padded to a multiple of it.
    """
    return append_bias(query, key, size_bias(sizes, prefix), query.shape[-1] ** -0.5, multiple)


def append_bias(query: Tensor, key: Tensor, bias: Tensor, scale: float, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Like `append_sizes`, from the bias (B, 1, 1, keys) itself, for attention that runs with this scale."""
    bias = (bias / scale).transpose(-1, -2)
    ones = query.new_ones(1).expand(*query.shape[:-1], 1)
    spare = -(query.shape[-1] + 1) % multiple
    query = F.pad(torch.cat((query, ones), -1), (0, spare))
    key = F.pad(torch.cat((key, bias.to(key.dtype).expand(*key.shape[:-1], 1)), -1), (0, spare))
    return query, key


def _join(sizes: Tensor, means: Tensor, joined: int, group: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """One round: where each region (B, m) goes, sizes and means (B, m - joined, ...) after it."""
    batch, regions = sizes.shape
    cost, choice = choose(sizes, means, regions if group is None else group)
    leaves = _cheapest(cost, joined)
    own = torch.arange(regions, device=means.device).expand(batch, -1)
    places = _interleave(torch.where(leaves, choice, own[:, ::2]), own[:, 1::2])
    number = (~_interleave(leaves, torch.zeros_like(own[:, 1::2], dtype=torch.bool))).cumsum(1) - 1
    moved = number.gather(1, places)
    left = regions - joined
    total = sizes.new_zeros(batch, left).scatter_add(1, moved, sizes)
    return moved, total, _sum_rows(means * sizes[..., None], moved, left) / total[..., None]


def _cheapest(cost: Tensor, count: int) -> Tensor:
    """Which (B, n) are the `count` least; of those that tie at the border the first."""
    # A choice that is not a number comes last, so that shapes hold whatever comes in.
    cost = cost.nan_to_num(nan=math.inf, posinf=math.inf)
    border = cost.topk(count, dim=1, largest=False).values.amax(1, keepdim=True)
    below, tie = cost < border, cost == border
    return below | (tie & (tie.cumsum(1) <= count - below.sum(1, keepdim=True)))


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """(B, m) with these at even and odd places; there may be one more of the even ones."""
    places = even.shape[1] + odd.shape[1]
    odd = F.pad(odd, (0, even.shape[1] - odd.shape[1]))
    return torch.stack((even, odd), -1).flatten(1)[:, :places]


def _means(x: Tensor, regions: TokenRegions) -> Tensor:
    return _sum_rows(x, regions.rows, regions.sizes.shape[1]) / regions.sizes[..., None].to(x.dtype)


def _sum_rows(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """(B, count, C) sums of the rows of x (B, N, C) that go to the same place."""
    # One index for a whole row is a fast path of PyTorch's, which it has along the first dimension only.
    index = _flat(rows, count)[:, None].expand(-1, x.shape[2])
    sums = x.new_zeros(x.shape[0] * count, x.shape[2]).scatter_add(0, index, x.flatten(0, 1))
    return sums.unflatten(0, (x.shape[0], count))


def _take(x: Tensor, rows: Tensor) -> Tensor:
    if pulls(x):
        return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
    return x.flatten(0, 1).index_select(0, _flat(rows, x.shape[1])).unflatten(0, rows.shape)


def _flat(rows: Tensor, count: int) -> Tensor:
    """Places in a batch whose images of `count` rows lie one after the other."""
    return (rows + count * torch.arange(rows.shape[0], device=rows.device)[:, None]).flatten()


def _check_partition(keys, count, share, rows, grid, tile) -> None:
    require(keys.dim() == 3, "keys.shape", tuple(keys.shape), "(B, N, K)", (1, 576, 384))
    if rows is not None:
        require(isinstance(rows, TokenRegions), "rows", type(rows).__name__, "None or TokenRegions", None)
        _check_rows("keys", keys, rows.rows)
    most = keys.shape[1] if rows is None else rows.sizes.shape[1]
    what = "tokens" if rows is None else "regions to go on from"
    require(is_count(count) and count <= most, "count", count, f"1 to {most}, the number of {what}", -(-most // 2))
    require(is_number(share) and 0 < share <= 0.5, "share", share, "above 0 and at most 0.5", 0.2)
    require(grid is None or tile is not None, "grid", grid, "None where no tile is given", None)
    if tile is None:
        return
    require(is_count(tile) and tile % 2 == 0, "tile", tile, "None or an even number of tokens", 16)
    tokens = keys.shape[1]
    whole = isinstance(grid, tuple) and len(grid) == 2 and grid[0] * grid[1] == tokens
    require(whole, "grid", grid, f"(H, W) of the {tokens} tokens where tile is given", (1, tokens))


def _check_rows(name: str, x: Tensor, rows: Tensor) -> None:
    fits = x.dim() == 3 and x.shape[:2] == rows.shape
    allowed = f"(B, N, C) with (B, N) = {tuple(rows.shape)} of the regions"
    require(fits, f"{name}.shape", tuple(x.shape), allowed, (*rows.shape, 384))
