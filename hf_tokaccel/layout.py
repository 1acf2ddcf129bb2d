"""How a host's hidden states hold the patch tokens that are clustered."""

import torch
from torch import Tensor


class TokenLayout:
    """A sequence (B, prefix + N, C): tokens that bypass clustering (class, registers), then the patches, row-major.

    Args:
        grid: (H, W) patch tokens that are clustered together.
        prefix: tokens before the patches.
    """

    def __init__(self, grid: tuple[int, int], prefix: int = 1) -> None:
        self.grid = grid
        self.prefix = prefix

    def split(self, states: Tensor) -> tuple[Tensor | None, Tensor]:
        """What bypasses clustering, and the tokens or clusters (B', N, C); B' counts what is clustered on its own."""
        return states[:, : self.prefix], states[:, self.prefix :]

    def join(self, kept: Tensor | None, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of `split`, for tokens or clusters (B', h * w, C) of a grid (h, w)."""
        return torch.cat((kept, tokens), dim=1)


class MapLayout(TokenLayout):
    """A map (B, C, H, W)."""

    def split(self, states: Tensor) -> tuple[None, Tensor]:
        return None, states.flatten(2).transpose(1, 2)

    def join(self, kept: None, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, grid)


class SliceLayout(TokenLayout):
    """A video (B, prefix + T * N, C): every frame or tubelet slice is clustered on its own.

    Args:
        grid: (H, W) patch tokens of a slice.
        prefix: tokens before the first slice.
        slices: T.
    """

    def __init__(self, grid: tuple[int, int], prefix: int, slices: int) -> None:
        super().__init__(grid, prefix)
        self.slices = slices

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        kept, tokens = super().split(states)
        return kept, tokens.unflatten(1, (self.slices, -1)).flatten(0, 1)

    def join(self, kept: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().join(kept, tokens.unflatten(0, (-1, self.slices)).flatten(1, 2), grid)
