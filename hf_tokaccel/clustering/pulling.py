"""Adaptive clusters in the form for a GPU: few launches, and sums that are the same bit by bit in every run.

Sums are formed by their readers, never by atomics. Keys and tokens in half precision, without gradients, are compared
and averaged by matrix products that accumulate in float32: rounding to half precision is what made these keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import constant, counting
from .functional import first_least, first_rows, mean_token
from .regions import TokenRegions, choose, matching_rounds, tile_order

# Above it membership as a matrix (B, M, N) would be larger than what it saves.
MOST_BY_PRODUCT = 8192


def is_half(*tensors: Tensor) -> bool:
    """Whether all are of half precision, and nothing is learnt."""
    half = all(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors)
    return half and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def partition_by_pulling(
    keys: Tensor,
    count: int,
    share: float,
    rows: TokenRegions | None,
    grid: tuple[int, int] | None,
    tile: int | None,
) -> TokenRegions:
    """See `adaptive.partition_tokens`.

    Each round takes the means of its regions anew from the tokens.
    """
    x = keys - mean_token(keys)
    if tile is None and is_half(keys) and keys.shape[1] <= MOST_BY_PRODUCT:
        return _partition_by_product(x.to(keys.dtype), count, share, rows)
    return _partition_by_bags(x, count, share, rows, grid, tile)


def _partition_by_product(x: Tensor, count: int, share: float, rows: TokenRegions | None) -> TokenRegions:
    """Of centred keys (B, N, K) in half precision."""
    regions, member, means, sizes = x.shape[1], None, x, None
    if rows is not None:
        regions, member, sizes = rows.sizes.shape[1], rows.rows, rows.sizes.float()
        means = _product_means(x, member, sizes)
    rounds = matching_rounds(regions, count, share)
    # A further column counts the tokens; eight keep rows aligned.
    wide = F.pad(x, (0, 8), value=1.0) if len(rounds) > 1 else x
    for joined in rounds:
        squares = torch.linalg.vector_norm(means, dim=-1, dtype=torch.float32).square()
        cost = _product(means[:, ::2], means[:, 1::2].transpose(1, 2))
        cost = torch.sub(squares[:, None, 1::2], cost, alpha=2).add_(squares[:, ::2, None])
        if sizes is not None:
            shares = sizes.reciprocal()
            cost.div_(shares[:, ::2, None] + shares[:, None, 1::2])
        least, choice = first_least(cost) if torch.compiler.is_compiling() else cost.min(-1)
        number = _numbers(least, choice, joined, regions)
        member, regions = (number if member is None else number.gather(1, member)), regions - joined
        if regions > count:
            sums = _product(_members(member, regions).to(x.dtype), wide)
            sizes = sums[..., x.shape[2]]
            means = (sums[..., : x.shape[2]] / sizes[..., None]).to(x.dtype)
    if member is None:
        member = counting(x, regions).repeat(len(x), 1)
    return TokenRegions(member.contiguous(), _members(member, regions).sum(-1))


def _members(member: Tensor, regions: int) -> Tensor:
    """(B, M, N): whether a token (B, N) is of a region."""
    return member[:, None] == counting(member, regions)[:, None]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product of matrices in half precision, in float32."""
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _product_means(x: Tensor, member: Tensor, sizes: Tensor) -> Tensor:
    """Means (B, M, C) of the rows of x (B, N, C), summed in float32."""
    sums = _product(_members(member, sizes.shape[1]).to(x.dtype), x)
    return (sums / sizes[..., None]).to(x.dtype)


def _partition_by_bags(
    x: Tensor,
    count: int,
    share: float,
    rows: TokenRegions | None,
    grid: tuple[int, int] | None,
    tile: int | None,
) -> TokenRegions:
    """Of centred keys (B, N, K), which lie region by region in `order`."""
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
        member = counting(x, regions).repeat(len(x), 1) if member is None else member
        order, starts = _by_region(member, regions)
    return TokenRegions(member.contiguous(), starts[:, 1:] - starts[:, :-1], order, starts)


def _choose_by_pulling(means: Tensor, starts: Tensor | None, tile: int | None) -> tuple[Tensor, Tensor]:
    """As `choose`, with the number of the region at an odd place in place of its place."""
    if tile is not None:
        sizes = means.new_ones(means.shape[:2]) if starts is None else (starts[:, 1:] - starts[:, :-1]).to(means.dtype)
        least, places = choose(sizes, means, tile * tile)
        return least, places // 2
    squares = torch.linalg.vector_norm(means, dim=-1).square()
    cost = squares[:, ::2, None] + squares[:, None, 1::2]
    evens, odds = means[:, ::2], means[:, 1::2].transpose(1, 2)
    cost = cost - 2 * (evens @ odds) if torch.compiler.is_compiling() else cost.baddbmm_(evens, odds, alpha=-2)
    if starts is not None:
        shares = (starts[:, 1:] - starts[:, :-1]).reciprocal()
        cost.div_(shares[:, ::2, None] + shares[:, None, 1::2])
    return first_least(cost) if torch.compiler.is_compiling() else cost.min(-1)


def _numbers(least: Tensor, choice: Tensor, joined: int, regions: int) -> Tensor:
    """(B, regions): the number of each in the next round, that of the one it joins where it joins one."""
    # Of those that tie at the border, the kernel takes the first.
    leaves = least.topk(joined, dim=1, largest=False, sorted=False).indices
    # All but the first, which is before them.
    stays = counting(least, regions + 1).expand(len(least), -1).clamp(max=1)
    stays[:, 1::2].scatter_(1, leaves, 0)
    number = stays.cumsum(1)[:, :-1]
    joins = number[:, 1::2].gather(1, choice.gather(1, leaves))
    number[:, ::2].scatter_(1, leaves, joins)
    return number


def _by_region(member: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """`TokenRegions.order` and `TokenRegions.starts` from the region (B, N) of each token."""
    ordered, order = member.sort(dim=1, stable=True)
    return order, torch.searchsorted(ordered, counting(member, regions + 1).expand(len(member), -1).contiguous())


def pulled_means(x: Tensor, regions: TokenRegions) -> Tensor:
    """See `adaptive.average_tokens`."""
    if is_half(x) and x.shape[1] <= MOST_BY_PRODUCT:
        return _product_means(x, regions.rows, regions.sizes)
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


def _tile_places(grid: tuple[int, int], tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    order = tile_order(grid, tile, device)
    return order, order.argsort()
