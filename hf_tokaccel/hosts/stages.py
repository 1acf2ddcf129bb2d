"""Hosts with stages and shifted windows, Swin and its relatives: one stage runs on clusters of its windows.

Expedit's hourglass (section 3.3 of the paper, released for Mask2Former): the windows of a stage are clustered before
one of its blocks, the blocks that follow have windows of clusters, and all tokens are back at the end of the stage.
"""

import functools
import math
import operator
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..checks import as_pair
from ..settings.clustering import TokenClusteringConfig
from .blocks import Block, Encoder, Grid
from .change import become
from .config import AcceleratedConfig
from .layout import WindowSequenceLayout
from .modeling import AcceleratedModel, run_tracked
from .track import TokenTrack
from .tracked import track_blocks


class StagedConfig(AcceleratedConfig):
    """What the configurations share.

    `cluster_after` counts the blocks of all stages, and `cluster_grid` is the side of the clusters of one window, at
    most one less than the window's. Clusters of the zero padding of windows take part, as released.
    """

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int:
        return host.window_size

    @classmethod
    def accel_steps(cls, host: PreTrainedConfig) -> None:
        """See `AcceleratedConfig`."""
        return

    @staticmethod
    def accel_stage_windows(host: PreTrainedConfig) -> list[int]:
        """Side of the windows of each stage, in tokens."""
        return [host.window_size] * len(host.depths)

    @classmethod
    def fit_accel(cls, setting: TokenClusteringConfig, host: PreTrainedConfig) -> TokenClusteringConfig:
        return setting.fit_stages(host.depths, cls.accel_stage_windows(host))

    @classmethod
    def accel_encoder(cls, host: PreTrainedConfig, image_size: Grid) -> Encoder:
        """See `AcceleratedConfig`; a clustered span lies within one stage."""
        rows, columns = (-(-side // step) for side, step in zip(image_size, as_pair(host.patch_size), strict=True))
        blocks, spans = [], []
        for stage, (depth, window) in enumerate(zip(host.depths, cls.accel_stage_windows(host), strict=True)):
            width = host.embed_dim * 2**stage
            # Where the map is smaller than a window, hosts make the window as small.
            units = -(-rows // window) * -(-columns // window)
            mlp = 2 * width * int(width * host.mlp_ratio)
            if window > 1:
                spans.append((len(blocks), len(blocks) + depth))
            blocks += [Block(width, mlp, (window, window), units, rows * columns, windowed=True)] * depth
            rows, columns = -(-rows // 2), -(-columns // 2)
        return Encoder(tuple(blocks), tuple(spans), square=True)


class AcceleratedStage:
    """First base of a stage that runs on clusters; the second is the host's own class.

    Attributes:
        accel: the setting, with blocks counted in this stage.
        window: side of its windows in tokens.
        accel_ambient: as in `AcceleratedModel`.
        accel_make_track: likewise.
    """

    accel: TokenClusteringConfig
    window: int
    accel_ambient = False
    accel_make_track: Callable[..., TokenTrack] = TokenTrack

    def start(self, size: tuple[int, int], wanted: Collection[int] = ()) -> TokenTrack:
        """The track of one pass through this stage, over a map of (H, W) tokens.

        It lives in the stage's own forward, so that gradient checkpointing starts another.
        """
        # Constants even where torch.compile made the image size symbolic: each size gets a graph of its own.
        layout = WindowSequenceLayout(tuple(operator.index(side) for side in size), self.window)
        return self.accel_make_track(
            self.accel, layout, depth=len(self.blocks), wanted=wanted, block_inputs=_on_cluster_map
        )


class StagedModel(AcceleratedModel):
    """First base of a model that runs the stages of its `encoder.layers` itself; the second is the host's own class.

    Attributes:
        accel_stage: our class of a stage.
        accel_block: our class of a block.
        accel_bias_path: dotted path, in a block, of what adds the relative positions of a window.
        accel_bias: our class of that, which finds in `side` how many clusters a side a window has.
    """

    accel_stage: type[AcceleratedStage]
    accel_block: type[nn.Module]
    accel_bias_path: str = "attention.self"
    accel_bias: type[nn.Module]

    def install_accel(self, accel: TokenClusteringConfig | None) -> None:
        super().install_accel(accel)
        if accel is None:
            return
        stages, first = self.encoder.layers, 0
        for stage in stages:
            if accel.cluster_after < first + len(stage.blocks):
                break
            first += len(stage.blocks)
        start, end = accel.cluster_after - first, accel.reconstruct_after - first
        local = replace(accel, cluster_after=start, reconstruct_after=end)
        become(stage, self.accel_stage, accel=local, window=stage.blocks[0].window_size)
        for block in stage.blocks[start:end]:
            self._shrink_windows(block, accel)
        track_blocks(stage.blocks, "layernorm_before", stage.accel_ambient)

    def _shrink_windows(self, block: nn.Module, accel: TokenClusteringConfig) -> None:
        """The clusters of a window are a window, with relative positions of its own."""
        side = accel.cluster_grid[0]
        # Every other block shifts, as it did; the map is whole windows, so none is shrunk to fit it.
        shift, released = (side // 2, block.shift_size) if block.shift_size else (0, 0)
        mask_shift = released if accel.mask_shift == "released" else shift
        become(block, self.accel_block, window_size=side, shift_size=shift, mask_shift=mask_shift)
        become(block.get_submodule(self.accel_bias_path), self.accel_bias, side=side)


def _on_cluster_map(track: TokenTrack, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What a block is called with: the size of the map first; some hosts shrink windows to small maps unless told."""
    if not track.clustered:
        return args, kwargs
    if "always_partition" in kwargs:
        kwargs = {**kwargs, "always_partition": True}
    return (track.layout.map_size(track.accel.cluster_grid), *args[1:]), kwargs


def through_clusters(native_forward: Callable) -> Callable:
    """Wraps the forward of a stage, which is called with the states and the size of their map."""

    @functools.wraps(native_forward)
    def forward(self, hidden_states, input_dimensions, *args, **kwargs):
        track = self.start(input_dimensions)
        output = run_tracked(native_forward, self, track, (hidden_states, input_dimensions, *args), kwargs)
        track.check_ran()
        return output

    return forward


class Seen:
    """A host's module as one of its own methods shall see it: some attributes replaced, the module left alone."""

    def __init__(self, module: nn.Module, **attributes: Any) -> None:
        self.module = module
        for name, value in attributes.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)


def masked_by_setting(native_mask: Callable) -> Callable:
    """Wraps the `get_attn_mask` of a block with windows of clusters, see `TokenClusteringConfig.mask_shift`."""

    @functools.wraps(native_mask)
    def get_attn_mask(self, *args, **kwargs):
        return native_mask(Seen(self, shift_size=self.mask_shift), *args, **kwargs)

    return get_attn_mask


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """A table ((2 * window - 1)^2, heads) of relative position biases as one ((2 * side - 1)^2, heads).

    Bilinear, corners not aligned, in float32: in every forward, so that what is trained and saved is the host's.
    """
    # torch.jit.trace has tensors for sizes.
    length = math.isqrt(int(table.shape[0]))
    biases = table.float().t().unflatten(1, (length, length))
    resized = F.interpolate(biases[None], size=(2 * side - 1,) * 2, mode="bilinear", align_corners=False)
    return resized[0].flatten(1).t().to(table.dtype)


def relative_position_index(side: int, device: torch.device) -> Tensor:
    """(side^2, side^2) rows of a bias table for all pairs in a window."""
    positions = torch.arange(side * side, device=device)
    rows, columns = positions // side, positions % side
    vertical = rows[:, None] - rows + side - 1
    return vertical * (2 * side - 1) + columns[:, None] - columns + side - 1
