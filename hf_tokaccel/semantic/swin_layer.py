"""Swin's block without memory: its window and shift follow from the map of the call alone."""

from typing import Any

import torch
from torch import Tensor
from transformers.models.swin.modeling_swin import SwinAttention, SwinLayer, SwinRelativePositionBias

from ..hosts.stages import Seen
from .windows import Size, join, pad_map, partition, window_padding


def fitted_window(window: int, size: Size, always_partition: bool) -> int:
    """Side of the windows of a map: at most its shorter side, unless it is padded to whole windows."""
    return window if always_partition else min(window, *size)


def part_of_bias(bias: SwinRelativePositionBias, window: Size) -> Tensor:
    """(1, heads, h * w, h * w) biases of a window that may be smaller than the one the table was made for."""
    if tuple(window) == tuple(bias.window_size):
        return bias()
    table, (height, width) = bias.relative_position_bias_table, bias.window_size
    y, x = (torch.arange(side, device=table.device) for side in window)
    rows = (y[:, None] - y + height - 1)[:, None, :, None]
    columns = (x[:, None] - x + width - 1)[:, None]
    index = (rows * (2 * width - 1) + columns).flatten()
    area = window[0] * window[1]
    return table[index].unflatten(0, (area, area)).permute(2, 0, 1).unsqueeze(0)


class WindowLayer(SwinLayer):
    """Its parameters are Swin's own.

    Where the map is no larger than a window, that shrinks to it and is not shifted. Swin of Transformers keeps both
    for the calls that follow, and its table of biases only fits whole windows.
    """

    def forward(
        self, hidden_states: Tensor, input_dimensions: Size, always_partition: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """States (B, H * W, C) of a map (H, W), and attention weights where the implementation tells them."""
        side = fitted_window(self.window_size, input_dimensions, always_partition)
        window = (side, side)
        shifts = self.shift_size > 0 and (always_partition or min(input_dimensions) > self.window_size)
        states = self.layernorm_before(hidden_states)
        states, size = pad_map(states, input_dimensions, 0, 0, *window_padding(input_dimensions, window))
        mask = None
        if shifts:
            states = self.cyclic_shift(states.unflatten(1, size)).flatten(1, 2)
            mask = self.get_attn_mask(*size, dtype=states.dtype, device=states.device)
        attended, weights = self._attend(partition(states, size, window), window, mask, **kwargs)
        maps = join(self.dropout(attended), size, window).unflatten(1, size)
        if shifts:
            maps = self.cyclic_shift(maps, reverse=True)
        attended = maps[:, : input_dimensions[0], : input_dimensions[1]].flatten(1, 2)
        states = hidden_states + self.drop_path(attended)
        return self.dropout(self.mlp(self.layernorm_after(states))) + states, weights

    def _attend(self, windows: Tensor, window: Size, mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if window[0] == self.window_size:
            return self.attention(windows, mask, **kwargs)
        bias = part_of_bias(self.attention.relative_position_bias, window)
        seen = Seen(self.attention, relative_position_bias=lambda: bias)
        return SwinAttention.forward(seen, windows, mask, **kwargs)
