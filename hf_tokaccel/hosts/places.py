"""Relative positions of clusters of free shape: those of the token that is nearest to the middle of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sizes import current_inputs
from .track import TokenTrack


def grid_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(N, 2) row and column of each token, float32."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def cluster_places(track: TokenTrack) -> Tensor:
    """(B, prefix + M) token at the middle of each cluster; those of the prefix are themselves.

    The track has `grid_positions`, whose means are rounded.
    """
    if "places" not in track.memo:
        row, column = track.cluster_positions.round().long().unbind(-1)
        prefix = track.layout.prefix
        first = torch.arange(prefix, device=row.device).expand(len(row), -1)
        track.memo["places"] = torch.cat((first, row * track.layout.grid[1] + column + prefix), dim=1)
    return track.memo["places"]


def gather_bias(bias: Tensor, places: Tensor) -> Tensor:
    """(B, heads, L, L) of the (1, heads, N, N) biases of all tokens, at places (B, L)."""
    return bias[0][:, places[:, :, None], places[:, None, :]].transpose(0, 1)


class GatheredBias:
    """First base of a relative position bias as BEiT has it; the second is the host's own class.

    Attributes:
        accel_adds_sizes: whether the bias of sizes is added here, for attention that Transformers chooses no function
            for.
    """

    accel_adds_sizes = False

    def forward(self, window_size: tuple[int, int], *args: Any, **kwargs: Any) -> Tensor:
        inputs = current_inputs()
        if inputs.places is None:
            bias = super().forward(window_size, *args, **kwargs)
        else:
            # At the size of the image, whatever the count of clusters.
            bias = gather_bias(super().forward(window_size), inputs.places)
        return bias + inputs.bias if self.accel_adds_sizes and inputs.bias is not None else bias
