"""SAM 2 on images: Hiera, of which one stage runs on clusters of its windows; neck and decoders stay native."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

from transformers import (
    PreTrainedConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2HieraDetModel,
    Sam2Model,
    Sam2VisionConfig,
    Sam2VisionModel,
)

from ..checks import UserError
from ..hosts.blocks import Block, Encoder, Grid
from ..hosts.config import AcceleratedConfig
from ..hosts.layout import TokenLayout, WindowLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, record
from ..registry import register_family
from ..settings.clustering import TokenClusteringConfig
from .sam import prompted


class TokAccelSam2HieraDetConfig(AcceleratedConfig, Sam2HieraDetConfig):
    """`Sam2HieraDetConfig` with `accel`; the span is inside of one stage, after the block that pools its tokens.

    `cluster_after` counts the blocks of all stages, `cluster_grid` is the side of the clusters of one window of that
    stage. Nothing was released for Hiera. The neck reads states without a LayerNorm, so reconstruction weights sum to
    one by default. As released for SAM, clusters of the zero padding take part.
    """

    model_type = "tokaccel_sam2_hiera_det_model"
    accel_normalization = "l1"

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int:
        """The largest; `fit_accel` knows which stage is clustered, and checks the windows of that."""
        return max(host.window_size_per_stage)

    @classmethod
    def fit_accel(cls, setting: TokenClusteringConfig, host: PreTrainedConfig) -> TokenClusteringConfig:
        """See `AcceleratedConfig`; an open `reconstruct_after` becomes the end of the stage.

        Raises:
            ValueError: also when the span contains a block that pools tokens.
        """
        blocks = list(host.blocks_per_stage)
        setting.check_depth(sum(blocks))
        setting.check_no_mask_shift()
        stage = stage_of(setting, host)
        end, after, until = sum(blocks[: stage + 1]), setting.cluster_after, setting.reconstruct_after
        where = f"stage {stage + 1} of blocks_per_stage={blocks}"
        if stage > 0 and after == end - blocks[stage]:
            longest = blocks.index(max(blocks))
            raise UserError(
                f"cluster_after={after} is not valid: block {after} (0-based) pools the tokens for {where}, and "
                f"clusters can only be made of pooled ones, for example cluster_after={sum(blocks[:longest]) + 1}."
            )
        if until is not None and until > end:
            raise UserError(
                f"reconstruct_after={until} is not valid: it must be None or between {after + 1} and {end}, where "
                f"{where} ends, for example reconstruct_after={end}."
            )
        windows = host.window_size_per_stage
        fitting = (k for k, count in enumerate(blocks) if windows[k] > 1 and (k == 0 or count > 1))
        elsewhere = next((sum(blocks[:k]) + min(k, 1) for k in fitting), None)
        setting.check_window_grid(windows[stage], where, elsewhere)
        return replace(setting, reconstruct_after=until or end)

    @classmethod
    def accel_steps(cls, host: PreTrainedConfig) -> Grid:
        """See `AcceleratedConfig`: position embeddings are those of a window of the first stage, repeated."""
        return tuple(stride * host.window_size_per_stage[0] for stride in host.patch_stride)

    @classmethod
    def accel_encoder(cls, host: PreTrainedConfig, image_size: Grid) -> Encoder:
        """See `AcceleratedConfig`; the block that pools its queries, the first of a stage, cannot run on clusters."""
        rows, columns = (side // step for side, step in zip(image_size, host.patch_stride, strict=True))
        blocks, spans, before = [], [], None
        stages = zip(host.blocks_per_stage, host.embed_dim_per_stage, host.window_size_per_stage, strict=True)
        for stage, (depth, width, window) in enumerate(stages):
            first, mlp = len(blocks), 2 * width * int(width * host.mlp_ratio)
            if before is not None:
                blocks.append(_pooling_block(host, stage, width, mlp, before, (rows, columns), first))
                if stage <= host.num_query_pool_stages:
                    rows, columns = rows // host.query_stride[0], columns // host.query_stride[1]
            units = -(-rows // window) * -(-columns // window)
            plain = Block(width, mlp, (window, window), units, rows * columns)
            inside = (len(blocks), first + depth)
            blocks += [replace(plain, windowed=index not in host.global_attention_blocks) for index in range(*inside)]
            if window > 1 and inside[0] < inside[1]:
                spans.append(inside)
            before = width, window
        return Encoder(tuple(blocks), tuple(spans), square=True)


def _pooling_block(
    host: PreTrainedConfig, stage: int, width: int, mlp: int, before: tuple[int, int], size: Grid, index: int
) -> Block:
    """Block `index`, the first of a stage, which comes after one of `before`: channels and side of its windows."""
    (narrow, window), (rows, columns) = before, size
    pooled = 4 if stage <= host.num_query_pool_stages else 1
    tokens = rows * columns
    if index not in host.global_attention_blocks:
        tokens = -(-rows // window) * window * -(-columns // window) * window
    seen = window**2 if index not in host.global_attention_blocks else tokens
    products = rows * columns * narrow * width + tokens * narrow * 3 * width
    products += tokens / pooled * (2 * seen * width + width**2) + rows * columns / pooled * mlp
    return Block(width, 0, (1, 1), 0, 0, extra=int(2 * products))


def stage_of(setting: TokenClusteringConfig, host: PreTrainedConfig) -> int:
    """The stage, 0-based, that a setting clusters."""
    ends = accumulate(host.blocks_per_stage)
    return next(index for index, end in enumerate(ends) if setting.cluster_after < end)


class TokAccelSam2HieraDetModel(AcceleratedModel, Sam2HieraDetModel):
    config: TokAccelSam2HieraDetConfig
    accel_layers = "blocks"
    accel_norm = "layer_norm1"
    accel_ambient = True
    accel_shrinks_windows = True
    forward = enter(record(Sam2HieraDetModel.forward))

    def accel_depth(self) -> int:
        return len(self.blocks)

    def accel_patch_size(self) -> tuple[int, int]:
        return TokAccelSam2HieraDetConfig.accel_steps(self.config)

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        config = self.config
        stage, windows = stage_of(self.accel, config), image_grid(self, arguments["pixel_values"])
        pools = min(stage, config.num_query_pool_stages)
        size = tuple(
            count * config.window_size_per_stage[0] // stride**pools
            for count, stride in zip(windows, config.query_stride, strict=True)
        )
        return WindowLayout(size, config.window_size_per_stage[stage], channels_last=True)


class TokAccelSam2VisionConfig(AcceleratedConfig, Sam2VisionConfig):
    """`Sam2VisionConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_sam2_vision_model"
    accel_host_path = "backbone_config"
    accel_host_types = ("sam2_hiera_det_model",)
    accel_normalization = "l1"


class TokAccelSam2VisionModel(AcceleratedModel, Sam2VisionModel):
    config: TokAccelSam2VisionConfig
    accel_parts = ("backbone",)


class TokAccelSam2Config(AcceleratedConfig, Sam2Config):
    """`Sam2Config` with `accel`, which applies to the backbone of its vision encoder."""

    model_type = "tokaccel_sam2"
    accel_host_path = "vision_config.backbone_config"
    accel_host_types = ("sam2_hiera_det_model",)
    accel_normalization = "l1"


class TokAccelSam2Model(AcceleratedModel, Sam2Model):
    """Its mask decoder reads features of several stages; those of the clustered one are reconstructed."""

    config: TokAccelSam2Config
    accel_parts = ("vision_encoder.backbone",)
    forward = prompted(Sam2Model.forward)


NOTE = "one stage of Hiera, images only; `cluster_grid` counts the clusters of one window of that stage"
register_family(TokAccelSam2HieraDetConfig, (TokAccelSam2HieraDetModel,), note=NOTE)
register_family(TokAccelSam2VisionConfig, (TokAccelSam2VisionModel,), note=NOTE)
register_family(TokAccelSam2Config, (TokAccelSam2Model,), note=NOTE)
