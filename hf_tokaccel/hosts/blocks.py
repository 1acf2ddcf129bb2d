"""FLOPs of a host's blocks in closed form, dense and on clusters; each family says what blocks it has."""

from __future__ import annotations

from dataclasses import dataclass

from ..clustering.adaptive import matching_rounds
from ..settings.clustering import TokenClusteringConfig

Grid = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """One block of a transformer.

    Attributes:
        width: channels.
        mlp: multiplications of the MLP for a token.
        grid: (H, W) tokens of a unit, which is what is clustered on its own: the image, a window, a slice of a video.
        units: how many there are; windows that padding completes are whole ones.
        tokens: patch tokens of all units, without padding.
        prefix: tokens that bypass clustering.
        windowed: whether each unit attends to itself only.
        relative: (H, W) of the whole map where attention adds products with relative positions, as SAM's does.
        extra: FLOPs that do not depend on clusters.
    """

    width: int
    mlp: int
    grid: Grid
    units: int
    tokens: int
    prefix: int = 0
    windowed: bool = False
    relative: Grid | None = None
    extra: int = 0

    def flops(self, clusters: Grid | None = None) -> float:
        """FLOPs for an image; `clusters` replace the tokens of each unit."""
        height, width = clusters or self.grid
        padded = self.units * height * width
        attended = (padded if self.windowed or clusters else self.tokens) + self.prefix
        outside = (padded if clusters else self.tokens) + self.prefix
        pairs = attended**2 / (self.units if self.windowed else 1)
        products = attended * 4 * self.width**2 + outside * self.mlp + 2 * pairs * self.width
        if self.relative is not None:
            rows, columns = (height, width) if self.windowed else self._map(clusters)
            products += attended * (rows + columns) * self.width
        return 2 * products + self.extra

    def _map(self, clusters: Grid | None) -> Grid:
        """(H, W) of the whole map."""
        if clusters is None:
            return self.relative
        return tuple(-(-side // unit) * c for side, unit, c in zip(self.relative, self.grid, clusters, strict=True))


@dataclass(frozen=True)
class Encoder:
    """The blocks of a host at an image size.

    Attributes:
        blocks: in order.
        spans: (first, end) of blocks within which a clustered span must lie.
        square: whether clusters of a unit must be a square smaller than it.
    """

    blocks: tuple[Block, ...]
    spans: tuple[tuple[int, int], ...]
    square: bool

    @property
    def flops(self) -> float:
        return sum(block.flops() for block in self.blocks)

    def clustered(self, after: int, grid: Grid, until: int | None = None) -> float:
        """FLOPs with blocks from `after` to `until`, or to the end of their span, on clusters."""
        until = until or self.span_of(after)[1]
        return sum(b.flops(grid if after <= i < until else None) for i, b in enumerate(self.blocks))

    def clusters(self, setting: TokenClusteringConfig) -> list[Grid | None]:
        """For each block the clusters of a unit that it runs on, (h, w), of adaptive ones (1, M); None for all tokens.

        Raises:
            ValueError: when there are more clusters than tokens.
        """
        starts, (height, width) = setting.starts, self.blocks[setting.starts[0]].grid
        until = min(setting.reconstruct_after or self.span_of(starts[0])[1], len(self.blocks))
        counts = setting.counts(height * width)
        shapes = [(1, count) for count in counts] if setting.adaptive else [setting.cluster_grid]
        found: list[Grid | None] = [None] * len(self.blocks)
        for start, end, shape in zip(starts, (*starts[1:], until), shapes, strict=True):
            found[start:end] = [shape] * (end - start)
        return found

    def accelerated(self, setting: TokenClusteringConfig) -> float:
        """FLOPs with a setting, without clustering and reconstruction themselves."""
        return sum(block.flops(shape) for block, shape in zip(self.blocks, self.clusters(setting), strict=True))

    def matching(self, setting: TokenClusteringConfig) -> float:
        """FLOPs of the distances that adaptive clusters are chosen by."""
        block = self.blocks[setting.starts[0]]
        left, total = block.grid[0] * block.grid[1], 0
        group = None if setting.tile is None else setting.tile**2
        for count in setting.counts(left):
            for joined in matching_rounds(left, count, setting.round_share):
                total += left * min(left, group or left) // 4
                left -= joined
        return 2 * total * block.width * block.units

    def span_of(self, after: int) -> tuple[int, int]:
        return next(span for span in self.spans if span[0] <= after < span[1])

    def longest(self) -> tuple[int, int]:
        """The span with most of the FLOPs."""
        return max(self.spans, key=lambda span: sum(block.flops() for block in self.blocks[slice(*span)]))

    def grids(self, after: int) -> list[Grid]:
        """Cluster grids in the proportions of the tokens, from few to many, fewer than the tokens."""
        height, width = self.blocks[after].grid
        if self.square:
            return [(side, side) for side in range(1, min(height, width))]
        longer = max(height, width)
        sides = {tuple(max(1, round(side * n / longer)) for side in (height, width)) for n in range(1, longer)}
        return sorted(sides, key=lambda grid: grid[0] * grid[1])
