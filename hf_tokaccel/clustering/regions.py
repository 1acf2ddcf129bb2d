"""What both forms of adaptive clusters share: the regions, rounds, costs and tiles; see `adaptive`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import first_least


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


def matching_rounds(regions: int, count: int, share: float) -> list[int]:
    """How many regions each round joins to others."""
    joined = []
    while regions > count:
        joined.append(min(regions - count, max(1, math.floor(share * regions))))
        regions -= joined[-1]
    return joined


def choose(sizes: Tensor, means: Tensor, group: int) -> tuple[Tensor, Tensor]:
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


def tile_order(grid: tuple[int, int], tile: int, device: torch.device) -> Tensor:
    """(N,) tokens in an order that goes through one tile after the other, each of them row by row."""
    height, width = grid
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    across = -(-width // tile)
    number = (rows // tile)[:, None] * across + columns // tile
    inside = (rows % tile)[:, None] * tile + columns % tile
    return (number * tile * tile + inside).flatten().argsort()
