"""Numbers of clusters for a share of the blocks' FLOPs, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hf_tokaccel.hosts.blocks import Encoder

# Of the blocks' FLOPs: 1.2 to 3.3 times fewer. The lowest are for 2.5 times as fast, which takes fewer than that.
SHARES = (0.82, 0.74, 0.67, 0.57, 0.50, 0.40, 0.35, 0.30)


def share_of(encoder: Encoder, counts: Sequence[int | None]) -> float:
    """FLOPs of blocks on so many clusters each, None for all tokens, over those of the dense blocks."""
    flops = (block.flops(n and (1, n)) for block, n in zip(encoder.blocks, counts, strict=True))
    return sum(flops) / encoder.flops


def counts_of(encoder: Encoder, after: Sequence[int], clusters: Sequence[int]) -> list[int | None]:
    """Clusters that each block runs on; None before the first step."""
    counts: list[int | None] = [None] * len(encoder.blocks)
    for start, count in zip(after, clusters, strict=True):
        counts[start:] = [count] * (len(counts) - start)
    return counts


def steps_for(encoder: Encoder, after: Sequence[int], share: float) -> tuple[int, ...] | None:
    """Clusters of each step, each the same part of those before, for a share of the FLOPs; None: unreachable."""
    height, width = encoder.blocks[after[0]].grid
    tokens = height * width

    def clusters(ratio: float) -> tuple[int, ...]:
        return tuple(max(1, round(tokens * ratio**number)) for number in range(1, len(after) + 1))

    def cost(ratio: float) -> float:
        return share_of(encoder, counts_of(encoder, after, clusters(ratio)))

    ratio = _largest(lambda ratio: cost(ratio) <= share)
    return None if ratio is None else clusters(ratio)


def grid_for(encoder: Encoder, after: int, share: float) -> tuple[int, int] | None:
    """Cluster grid (h, w), nearly a square, for a share of the FLOPs; None where it is too low."""
    steps = steps_for(encoder, (after,), share)
    if steps is None:
        return None
    height, width = encoder.blocks[after].grid
    ratio = (steps[0] / (height * width)) ** 0.5
    rows = max(1, round(ratio * height))
    return rows, min(width, max(1, round(steps[0] / rows)))


def merged_for(encoder: Encoder, share: float) -> int | None:
    """Tokens that each block merges, for a share of the FLOPs; None where it is too low."""
    height, width = encoder.blocks[0].grid
    fits = (n for n in range(1, height * width // 2) if share_of(encoder, merged_counts(encoder, n)) <= share)
    return next(fits, None)


def merged_counts(encoder: Encoder, merged: int) -> list[int]:
    """Tokens that each block runs on where so many merge before each, or half of what is left."""
    height, width = encoder.blocks[0].grid
    left, counts = height * width, []
    for _ in encoder.blocks:
        left -= min(merged, left // 2)
        counts.append(left)
    return counts


def _largest(fits: Callable[[float], bool]) -> float | None:
    """The largest ratio below 1 that fits, to a millionth; what fits goes on fitting below."""
    low, high = 1e-3, 1.0
    if not fits(low):
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
