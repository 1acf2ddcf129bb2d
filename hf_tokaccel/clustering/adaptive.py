"""Adaptive clusters: regions of free shape and a fixed count, and attention that knows what each stands for.

Bipartite matching in a few static rounds, as Token Merging (Bolya et al., ICLR 2023) has it, by the cost of Ward
(1963). Attention with sizes is the proportional attention of the same paper, and `"delta"` adds the change of a region
to each of its tokens (IPCV, arXiv 2512.18747, has a form of it). Tokens are (B, N, C) without class tokens, regions
(B, M, C). Everything is computed in float32 (float64 stays) with autocast off, every shape is static given N and M,
nothing is random, and ties are broken by order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, is_count, is_number, require
from .constants import constant
from .functional import _autocast_off, _exact, first_least, first_rows, mean_token, pulls

EXPANSIONS = ("delta", "nearest")


class TokenRegions(NamedTuple):
    """Result of `partition_tokens`."""

    rows: Tensor
    """(B, N) int64: the region of each token, 0 to M - 1."""
    sizes: Tensor
    """(B, M) int64: tokens of each region."""
    order: Tensor | None = None
    """(B, N) int64: tokens region by region, where means are taken that way (on a GPU)."""
    starts: Tensor | None = None
    """(B, M + 1) int64: where each region begins in `order`, and N."""


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
        x = keys.detach()
        x = x - mean_token(x)
        if pulls(keys):
            return _partition_by_pulling(x, count, share, rows, grid, tile)
        if rows is None:
            order = None if tile is None else _tile_order(grid, tile, keys.device)
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
            return _pulled_means(tokens, regions)
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


def matching_rounds(regions: int, count: int, share: float) -> list[int]:
    """How many regions each round joins to others."""
    joined = []
    while regions > count:
        joined.append(min(regions - count, max(1, math.floor(share * regions))))
        regions -= joined[-1]
    return joined


def _join(sizes: Tensor, means: Tensor, joined: int, group: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """One round: where each region (B, m) goes, sizes and means (B, m - joined, ...) after it."""
    batch, regions = sizes.shape
    cost, choice = _choose(sizes, means, regions if group is None else group)
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


def _choose(sizes: Tensor, means: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """For the regions at even places the least Ward cost (B, ceil(m / 2)) and the place of the region that has it.

    Choices stay inside of groups of so many consecutive regions.
    """
    regions = means.shape[1]
    group = min(group, regions + regions % 2)
    groups = -(-regions // group)
    spare = groups * group - regions
    if spare:
        means, sizes = F.pad(means, (0, 0, 0, spare)), F.pad(sizes, (0, spare), value=math.inf)
    x, n = means.unflatten(1, (groups, group)), sizes.unflatten(1, (groups, group))
    squares, share = x.square().sum(-1), 1 / n
    # In place, since these are the large tensors: a - 2 ab + b, times n m / (n + m).
    cost = x[:, :, ::2] @ x[:, :, 1::2].transpose(-1, -2)
    cost.mul_(-2).add_(squares[:, :, ::2, None]).add_(squares[:, :, None, 1::2]).clamp_(min=0)
    cost.div_(share[:, :, ::2, None] + share[:, :, None, 1::2])
    if spare:
        cost.masked_fill_((share[:, :, None, 1::2] == 0) | (share[:, :, ::2, None] == 0), math.inf)
    least, place = first_least(cost)
    first = torch.arange(groups, device=means.device)[:, None] * group
    evens = (regions + 1) // 2
    return least.flatten(1)[:, :evens], (2 * place + 1 + first).flatten(1)[:, :evens]


def _partition_by_pulling(x, count, share, rows, grid, tile) -> TokenRegions:
    """The same partition in the form for a GPU: few launches, and sums that are the same bit by bit in every run.

    Each round takes the means of its regions anew from the tokens, which lie region by region in `order`.
    """
    if rows is None:
        regions, member, means, starts = x.shape[1], None, x, None
        if tile is not None:
            order, member = constant(x, _tile_places, grid, tile)
            means, member = x.index_select(1, order), member.expand(len(x), -1)
    else:
        regions, member = rows.sizes.shape[1], rows.rows
        order, starts = (rows.order, rows.starts) if rows.order is not None else _by_region(member, regions)
        means = _bag_means(x, order, starts)
    for joined in matching_rounds(regions, count, share):
        least, choice = _choose_by_pulling(means, starts, tile)
        number = _numbers(least, choice, joined, regions)
        member, regions = (number if member is None else number.gather(1, member)), regions - joined
        order, starts = _by_region(member, regions)
        if regions > count:
            means = _bag_means(x, order, starts)
    if starts is None:
        member = constant(x, _counting, len(x), regions) if member is None else member
        order, starts = _by_region(member, regions)
    return TokenRegions(member.contiguous(), starts[:, 1:] - starts[:, :-1], order, starts)


def _choose_by_pulling(means: Tensor, starts: Tensor | None, tile: int | None) -> tuple[Tensor, Tensor]:
    """As `_choose`, with the number of the region at an odd place in place of its place."""
    if tile is not None:
        sizes = means.new_ones(means.shape[:2]) if starts is None else (starts[:, 1:] - starts[:, :-1]).to(means.dtype)
        least, places = _choose(sizes, means, tile * tile)
        return least, places // 2
    squares = torch.linalg.vector_norm(means, dim=-1).square()
    cost = squares[:, ::2, None] + squares[:, None, 1::2]
    cost.baddbmm_(means[:, ::2], means[:, 1::2].transpose(1, 2), alpha=-2)
    if starts is not None:
        shares = (starts[:, 1:] - starts[:, :-1]).reciprocal()
        cost.div_(shares[:, ::2, None] + shares[:, None, 1::2])
    return first_least(cost) if torch.compiler.is_compiling() else cost.min(-1)


def _numbers(least: Tensor, choice: Tensor, joined: int, regions: int) -> Tensor:
    """(B, regions): the number of each in the next round, that of the one it joins where it joins one."""
    # Of those that tie at the border, the kernel takes the first.
    leaves = least.topk(joined, dim=1, largest=False, sorted=False).indices
    stays = constant(least, _all_but_first, len(least), regions + 1).clone()
    stays[:, 1::2].scatter_(1, leaves, 0)
    number = stays.cumsum(1)[:, :-1]
    joins = number[:, 1::2].gather(1, choice.gather(1, leaves))
    number[:, ::2].scatter_(1, leaves, joins)
    return number


def _by_region(member: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """`TokenRegions.order` and `TokenRegions.starts` from the region (B, N) of each token."""
    ordered, order = member.sort(dim=1, stable=True)
    return order, torch.searchsorted(ordered, constant(member, _counting, len(member), regions + 1))


def _pulled_means(x: Tensor, regions: TokenRegions) -> Tensor:
    order, starts = regions.order, regions.starts
    if order is None:
        order, starts = _by_region(regions.rows, regions.sizes.shape[1])
    return _bag_means(x, order, starts)


def _bag_means(x: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Means (B, M, C) of the rows of x (B, N, C), each region by one reader; summed in float32 or better on a GPU."""
    if len(x) > 1:
        first = constant(order, first_rows, len(x), x.shape[1])[..., 0]
        order, starts = order + first, starts + first
    # The last of each image begins where it ends: an empty one.
    bags = F.embedding_bag(order.flatten(), x.flatten(0, 1), starts.flatten(), mode="mean")
    return bags.unflatten(0, (len(x), -1))[:, :-1]


def _counting(batch: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device).repeat(batch, 1)


def _all_but_first(batch: int, count: int, device: torch.device) -> Tensor:
    return _counting(batch, count, device).clamp(max=1)


def _tile_places(grid: tuple[int, int], tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    order = _tile_order(grid, tile, device)
    return order, order.argsort()


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


def _tile_order(grid: tuple[int, int], tile: int, device: torch.device) -> Tensor:
    """(N,) tokens in an order that goes through one tile after the other, each of them row by row."""
    height, width = grid
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    across = -(-width // tile)
    number = (rows // tile)[:, None] * across + columns // tile
    inside = (rows % tile)[:, None] * tile + columns % tile
    return (number * tile * tile + inside).flatten().argsort()


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
