"""What several benchmarks time: tokens like those of a model, and the method on them by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_tokaccel.functional import (
    average_tokens,
    cluster_tokens,
    partition_tokens,
    plan_reconstruction,
    reconstruct_regions,
    reconstruct_tokens,
)


def make_tokens(grid: tuple[int, int], width: int, batch: int = 1) -> Tensor:
    """Smooth maps plus noise, as features are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, width, 10, 10, generator=generator)
    maps = F.interpolate(coarse, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
    return maps + 0.5 * torch.randn(batch, grid[0] * grid[1], width, generator=generator)


def adaptive(x: Tensor, count: int, **options) -> Tensor:
    """Partition, means and the change of the regions added to the tokens."""
    regions = partition_tokens(x, count, **options)
    centroids = average_tokens(x, regions)
    return reconstruct_regions(centroids, regions, tokens=x, centroids=centroids)


@dataclass(frozen=True)
class Clustering:
    """Where a large model clusters, and how.

    Attributes:
        grid: of the tokens that are clustered together.
        cluster_grid: what they become.
        width: of a token.
        units: such grids in an image, its windows.
        window: of clustering.
        neighbors: of reconstruction.
        expansion: of reconstruction.
    """

    grid: tuple[int, int]
    cluster_grid: tuple[int, int]
    width: int
    units: int = 1
    window: int = 5
    neighbors: int = 20
    expansion: str = "soft"

    @property
    def clusters(self) -> int:
        return self.cluster_grid[0] * self.cluster_grid[1]

    def tokens(self, images: int) -> Tensor:
        """(images * units, N, C), in the same numbers for every image."""
        return make_tokens(self.grid, self.width).repeat(images * self.units, 1, 1)

    def by_grid(self, x: Tensor) -> Tensor:
        """Clustering, plan and one reconstruction."""
        s = cluster_tokens(x, self.grid, self.cluster_grid, window=self.window).centroids
        return reconstruct_tokens(s, plan_reconstruction(x, s, neighbors=self.neighbors, expansion=self.expansion))

    def functions(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The method in its forms, by name."""
        half = (self.grid[0] * self.grid[1] + 1) // 2
        return {
            "grid": self.by_grid,
            "adaptive": lambda x: adaptive(x, self.clusters),
            "adaptive, one round": lambda x: adaptive(x, max(self.clusters, half), share=0.5),
        }


PLACES = {
    "ViT-L 640": Clustering((40, 40), (28, 28), 1024),
    "Depth Anything-L 518": Clustering((37, 37), (26, 26), 1024, expansion="delta"),
    "DINOv3-L 1024": Clustering((64, 64), (45, 45), 1024),
    "Swin-L 1152": Clustering((12, 12), (8, 8), 768, units=36, window=7, neighbors=10),
    "SAM-H 1024": Clustering((14, 14), (10, 10), 1280, units=25),
}
TINY_PLACES = {"tiny windows": Clustering((6, 6), (4, 4), 32, units=2, window=3, neighbors=4)}
