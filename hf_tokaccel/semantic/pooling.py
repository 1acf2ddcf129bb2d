"""First centres of the semantic tokens: pooling of a map of image tokens (section 3.2, "spatial pooling")."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..checks import UserError

_EPS = 1e-5  # LayerNorm of the posted module, whatever that of the model is


def check_token_grid(grid: tuple[int, int], size: tuple[int, int], pooling: str, where: str = "the image") -> None:
    """Raises ValueError where `grid` semantic tokens (h, w) cannot be pooled from `size` image tokens (H, W).

    There must be fewer of them than image tokens. Weighted pooling moreover pads the map to windows of equal size, of
    which none may lie outside of it.
    """
    sides = [[side for side in range(1, tokens + 1) if _fits(side, tokens, pooling)] for tokens in size]
    fewer = grid[0] * grid[1] < size[0] * size[1]
    if fewer and all(side in allowed for side, allowed in zip(grid, sides, strict=True)):
        return
    smaller = [allowed[:-1] or allowed for allowed in sides]
    example = tuple(min(allowed, key=lambda side: abs(side - 4)) for allowed in smaller)
    raise UserError(
        f"token_grid={tuple(grid)} does not fit: it must give fewer semantic tokens than the {size[0]} x {size[1]} "
        f"tokens of {where}, with h one of {sides[0]} and w one of {sides[1]} for pooling={pooling!r}, for example "
        f"token_grid={example}."
    )


def _fits(side: int, tokens: int, pooling: str) -> bool:
    window, before, after = window_padding(tokens, side)
    return pooling == "max" or max(before, after) < window


def window_padding(tokens: int, windows: int) -> tuple[int, int, int]:
    """Tokens of one window, and how many pad one side of a map before and after its `tokens`."""
    size = -(-tokens // windows)
    padding = size * windows - tokens
    return size, padding // 2, padding - padding // 2


def max_pooling(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adaptive max pooling of maps (B, H, W, C) to tokens (B, h * w, C), row by row.

    Bins overlap where the grid does not divide the map, as in `torch.nn.functional.adaptive_max_pool2d`, which ONNX
    lacks for these.
    """
    for dim, side in enumerate(grid, start=1):
        length = maps.shape[dim]
        bins = [(index * length // side, -(-(index + 1) * length // side)) for index in range(side)]
        maps = torch.stack([maps.narrow(dim, start, end - start).amax(dim) for start, end in bins], dim)
    return maps.flatten(1, 2)


class CenterNetwork(nn.Module):
    """Depth-wise 3 x 3 convolution, LayerNorm over channels, GELU, 1 x 1 convolution without bias.

    Takes maps (B, H, W, C) to (B, H, W, `outputs`).
    """

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(size, size, 3, padding=1, groups=size)
        self.norm = nn.LayerNorm(size, eps=_EPS)
        self.pointwise = nn.Linear(size, outputs, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        states = self.depthwise(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.pointwise(nn.functional.gelu(self.norm(states)))


class WeightedPooling(nn.Module):
    """Each window's sum of its own tokens, weighted by a learned mask (posted by the authors)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mask = CenterNetwork(size, 1)

    def forward(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pools maps (B, H, W, C) to tokens (B, h * w, C), row by row."""
        windows, weights = self.windows_and_weights(maps, grid)
        return (weights.unsqueeze(2) @ windows).squeeze(2)

    def windows_and_weights(self, maps: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens of each window (B, h * w, P, C), with zeros where the map is padded, and their weights (B, h * w, P).

        The convolution sees zeros beyond the border of a window.
        """
        height, top, bottom = window_padding(maps.shape[1], grid[0])
        width, left, right = window_padding(maps.shape[2], grid[1])
        padding = (0, 0, left, right, top, bottom)
        windows = _cut(nn.functional.pad(maps, padding), grid)
        logits = (
            self.mask(windows.flatten(0, 1).unflatten(1, (height, width))).flatten(1).unflatten(0, windows.shape[:2])
        )
        if top or bottom or left or right:
            inside = nn.functional.pad(maps.new_ones(1, *maps.shape[1:3], 1, dtype=torch.bool), padding)
            logits = logits.masked_fill(~_cut(inside, grid).squeeze(-1), float("-inf"))
        return windows, logits.softmax(-1)


def _cut(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Windows (B, h * w, P, C) of maps (B, H, W, C) that the grid divides."""
    maps = maps.unflatten(1, (grid[0], -1)).unflatten(3, (grid[1], -1))
    return maps.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class CenterOffset(nn.Module):
    """Adds a learned convolution over the grid of centres to them; our reading of the unpublished equations 4-5."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.offset = CenterNetwork(size, size)

    def forward(self, centers: Tensor, grid: tuple[int, int]) -> Tensor:
        """Centres (B, h * w, C), moved."""
        return centers + self.offset(centers.unflatten(1, grid)).flatten(1, 2)


class SemanticPooling(nn.Module):
    """The first centres as a setting wants them.

    Args:
        size: channels C.
        grid: semantic tokens (h, w) of a map.
        pooling: `"weighted"` or `"max"`.
        offset: whether `CenterOffset` follows.
    """

    def __init__(self, size: int, grid: tuple[int, int], pooling: str, offset: bool = False) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.weighted = WeightedPooling(size) if pooling == "weighted" else None
        self.offset = CenterOffset(size) if offset else None

    def forward(self, maps: Tensor) -> Tensor:
        """Pools maps (B, H, W, C) to tokens (B, h * w, C), row by row."""
        pooled = max_pooling(maps, self.grid) if self.weighted is None else self.weighted(maps, self.grid)
        return pooled if self.offset is None else self.offset(pooled, self.grid)


class GlobalCenters(nn.Module):
    """Learned centres (1, S, C), the same for all images, which are added to tokens (B, S, C)."""

    def __init__(self, tokens: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, tokens, size))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.weight


def initialize_centers(module: nn.Module) -> None:
    """Initial values of the modules of this file, for `_init_weights` of a model."""
    if isinstance(module, GlobalCenters):
        init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, CenterNetwork):
        # PyTorch's own for convolutions with 9 and C inputs per output, as in the released code.
        init.uniform_(module.depthwise.weight, -1 / 3, 1 / 3)
        init.uniform_(module.depthwise.bias, -1 / 3, 1 / 3)
        bound = module.pointwise.in_features**-0.5
        init.uniform_(module.pointwise.weight, -bound, bound)
