"""How a host's hidden states hold the patch tokens that are clustered."""

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenLayout:
    """A sequence (B, prefix + N, C): tokens that bypass clustering (class, registers), then the patches, row-major.

    Args:
        grid: (H, W) patch tokens that are clustered together.
        prefix: tokens before the patches.
        unit: what is clustered together, in words for error messages.
        parts: grids that a frame consists of.
    """

    def __init__(self, grid: tuple[int, int], prefix: int = 1, unit: str = "the image", parts: int = 1) -> None:
        self.grid = grid
        self.prefix = prefix
        self.unit = unit
        self.parts = parts

    def frames(self, batch: int) -> int:
        """Consecutive frames that can share a plan, given B': the images of a batch, or the slices of a video."""
        return batch // self.parts

    def split(self, states: Tensor, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """What bypasses clustering, and the tokens or clusters (B', h * w, C) of a grid (h, w).

        B' counts what is clustered on its own.
        """
        return states[:, : self.prefix], states[:, self.prefix :]

    def join(self, kept: Tensor | None, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat((kept, tokens), dim=1)

    def assemble(self, labels: Tensor) -> Tensor:
        """Cluster indices (B', h, w) of what is clustered on its own, as maps of different clusters in one.

        Here every grid stays a map of its own.
        """
        return labels


class MapLayout(TokenLayout):
    """A map (B, C, H, W)."""

    def split(self, states: Tensor, grid: tuple[int, int]) -> tuple[None, Tensor]:
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

    def frames(self, batch: int) -> int:
        return self.slices

    def split(self, states: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        kept, tokens = super().split(states, grid)
        return kept, tokens.unflatten(1, (self.slices, -1)).flatten(0, 1)

    def join(self, kept: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().join(kept, tokens.unflatten(0, (-1, self.slices)).flatten(1, 2), grid)


class WindowLayout(TokenLayout):
    """A map (B, C, H, W) under window attention: every window is clustered on its own (Expedit's SAM and Swin).

    Tokens are zero-padded at the bottom and right to whole windows, row-major and not shifted; padding is clustered
    like tokens, as released. Clusters are put back as the windows of a smaller map, padding included.

    Args:
        size: (H, W) of the map.
        window: side of a window in tokens.
        channels_last: whether states are (B, H, W, C).
    """

    def __init__(self, size: tuple[int, int], window: int, channels_last: bool = False) -> None:
        super().__init__((window, window), prefix=0)
        self.size = size
        self.windows = tuple(-(-side // window) for side in size)
        self.parts = self.windows[0] * self.windows[1]
        self.channels_last = channels_last

    def split(self, states: Tensor, grid: tuple[int, int]) -> tuple[None, Tensor]:
        if not self.channels_last:
            states = states.movedim(1, -1)
        if grid == self.grid:
            bottom, right = (
                count * side - tokens for count, side, tokens in zip(self.windows, grid, self.size, strict=True)
            )
            states = F.pad(states, (0, 0, 0, right, 0, bottom))
        tiles = states.unflatten(2, (self.windows[1], grid[1])).unflatten(1, (self.windows[0], grid[0]))
        return None, tiles.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, kept: None, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tiles = tokens.unflatten(0, (-1, *self.windows)).unflatten(3, grid)
        states = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if grid == self.grid:
            states = states[:, : self.size[0], : self.size[1]]
        return states if self.channels_last else states.movedim(-1, 1).contiguous()

    def assemble(self, labels: Tensor) -> Tensor:
        """Cluster indices (B', h, w) of windows as maps (B, H, W), where no two windows share an index."""
        rows, columns = self.windows
        first = torch.arange(rows * columns, device=labels.device).view(rows, columns, 1, 1) * (labels.max() + 1)
        tiles = labels.unflatten(0, (-1, rows, columns)) + first
        return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, : self.size[0], : self.size[1]]


class WindowSequenceLayout(WindowLayout):
    """A sequence (B, H * W, C) of a map, otherwise like `WindowLayout`.

    Args:
        size: (H, W) of the map.
        window: side of a window in tokens.
    """

    def __init__(self, size: tuple[int, int], window: int) -> None:
        super().__init__(size, window, channels_last=True)

    def map_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the map of tokens, or of clusters where the grid of a window is not that of its tokens."""
        if grid == self.grid:
            return self.size
        return self.windows[0] * grid[0], self.windows[1] * grid[1]

    def split(self, states: Tensor, grid: tuple[int, int]) -> tuple[None, Tensor]:
        return super().split(states.unflatten(1, self.map_size(grid)), grid)

    def join(self, kept: None, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().join(kept, tokens, grid).flatten(1, 2)
