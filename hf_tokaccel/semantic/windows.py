"""Windows of a map of tokens, and the tokens around each that it reads.

A map is a sequence (B, H * W, C), row by row, with its size (H, W) as plain numbers; its n windows (h, w) are
(B * n, h * w, C), row by row as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

Size = tuple[int, int]


def count_windows(size: Size, window: Size) -> Size:
    """Windows (rows, columns) that cover a map, the last ones in part."""
    return -(-size[0] // window[0]), -(-size[1] // window[1])


def window_padding(size: Size, window: Size) -> Size:
    """Rows below and columns to the right of a map that fill its last windows."""
    return -size[0] % window[0], -size[1] % window[1]


def pad_map(states: Tensor, size: Size, top: int, left: int, bottom: int, right: int) -> tuple[Tensor, Size]:
    """The map with zeros around it, and its size."""
    if not any((top, left, bottom, right)):
        return states, size
    maps = nn.functional.pad(states.unflatten(1, size), (0, 0, left, right, top, bottom))
    return maps.flatten(1, 2), (size[0] + top + bottom, size[1] + left + right)


def partition(states: Tensor, size: Size, window: Size) -> Tensor:
    """The windows of a map, filled with zeros where they reach beyond it."""
    states, size = pad_map(states, size, 0, 0, *window_padding(size, window))
    rows, columns = count_windows(size, window)
    maps = states.unflatten(1, size).unflatten(1, (rows, window[0])).unflatten(3, (columns, window[1]))
    return maps.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def join(windows: Tensor, size: Size, window: Size) -> Tensor:
    """The map whose windows these are; what lies beyond it is dropped."""
    maps = windows.unflatten(0, (-1, *count_windows(size, window))).unflatten(3, window).transpose(2, 3)
    maps = maps.flatten(3, 4).flatten(1, 2)
    return maps[:, : size[0], : size[1]].flatten(1, 2)


@dataclass(frozen=True)
class Axis:
    """What the windows along one side of a map read of it, in tokens.

    Attributes:
        size: of the map.
        count: of the windows.
        step: from a window to the next.
        before: how far a window reads back from where it starts.
        span: how much it reads.
        moved: whether what would reach beyond the map is moved into it.
    """

    size: int
    count: int
    step: int
    before: int
    span: int
    moved: bool = False

    @property
    def whole(self) -> bool:
        """Whether every window reads the whole side."""
        if self.moved:
            return self.span >= self.size
        return (self.count - 1) * self.step <= self.before and self.span - self.before >= self.size

    def positions(self, device: torch.device) -> Tensor:
        """(count, tokens) positions, of which some may lie outside of the map."""
        if self.whole:
            return torch.arange(self.size, device=device).expand(self.count, -1)
        start = torch.arange(self.count, device=device) * self.step - self.before
        if self.moved:
            start = start.clamp(0, self.size - self.span)
        return start[:, None] + torch.arange(self.span, device=device)


@dataclass(frozen=True)
class KeyWindows:
    """The tokens of a map that each window of it, or of another map, reads.

    Attributes:
        index: (n, K) of n windows.
        outside: (n, K) whether a token lies outside of the map, and another stands in for it; None where none does.
    """

    index: Tensor
    outside: Tensor | None

    def gather(self, states: Tensor) -> Tensor:
        """(B * n, K, C) of a map (B, N, C)."""
        return states.index_select(1, self.index.flatten()).unflatten(1, self.index.shape).flatten(0, 1)

    def mask(self, batch: int, dtype: torch.dtype) -> Tensor | None:
        """(B * n, 1, 1, K), to be added to logits: the lowest number where a token is to be left out."""
        if self.outside is None:
            return None
        mask = torch.zeros(self.outside.shape, dtype=dtype, device=self.outside.device)
        mask = mask.masked_fill(self.outside, torch.finfo(dtype).min)
        return mask.repeat(batch, 1)[:, None, None]


def key_windows(rows: Axis, columns: Axis, device: torch.device) -> KeyWindows:
    """What windows read in both directions."""
    y, x = rows.positions(device)[:, None, :, None], columns.positions(device)[:, None]
    outside = (y < 0) | (y >= rows.size) | (x < 0) | (x >= columns.size)
    index = y.clamp(0, rows.size - 1) * columns.size + x.clamp(0, columns.size - 1)
    shape = (rows.count * columns.count, -1)
    return KeyWindows(index.reshape(shape), outside.reshape(shape) if _reaches_out(rows, columns) else None)


def _reaches_out(*axes: Axis) -> bool:
    return any(
        not axis.whole
        and not axis.moved
        and (axis.before > 0 or (axis.count - 1) * axis.step - axis.before + axis.span > axis.size)
        for axis in axes
    )


def released_outside(windows: KeyWindows, size: Size, padding: Size, margins: tuple[Size, Size]) -> Tensor:
    """(n, K) tokens that the released detectors leave out, mistakes included.

    Those of the margins and of the last `padding` rows *and* columns, where no padding stands for all rows or columns.
    A window that would leave out everything leaves out nothing: -1000 on all its logits changed nothing but digits.

    Args:
        windows: into the map with its margins.
        size: of the map without them, whole windows.
        padding: rows and columns that filled the image tokens' last windows, whatever map this is.
        margins: rows and columns before and after the map.
    """
    device = windows.index.device
    y, x = torch.arange(size[0], device=device), torch.arange(size[1], device=device)
    corner = (y >= (size[0] - padding[0] if padding[0] else 0))[:, None]
    corner = corner & (x >= (size[1] - padding[1] if padding[1] else 0))
    (top, left), (bottom, right) = margins
    outside = nn.functional.pad(corner, (left, right, top, bottom), value=True).flatten()[windows.index]
    return outside & ~outside.all(-1, keepdim=True)
