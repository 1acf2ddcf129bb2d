"""ViTDet: model, and the Backbone under ViTMatte; window attention, global blocks and residual convolutions."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig, VitDetBackbone, VitDetConfig, VitDetModel
from transformers.models.vitdet.modeling_vitdet import VitDetEncoder

from ..hosts.blocks import Encoder, Grid
from ..hosts.config import AcceleratedConfig
from ..hosts.layout import MapLayout, TokenLayout, WindowLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, record
from ..registry import register_family


class TokAccelVitDetConfig(AcceleratedConfig, VitDetConfig):
    """`VitDetConfig` with `accel`; with window blocks, `cluster_grid` is the side of the clusters of one window.

    As released for SAM, whose encoder is built alike, clusters of the zero padding take part. Feature maps come
    without a LayerNorm, so reconstruction weights sum to one by default.
    """

    model_type = "tokaccel_vitdet"
    accel_normalization = "l1"
    accel_prefix = 0

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int | None:
        return host.window_size if host.window_size > 0 and host.window_block_indices else None

    @classmethod
    def accel_adaptive(cls, host: PreTrainedConfig) -> bool:
        """No: between its blocks are convolutions over the map."""
        return False

    @classmethod
    def accel_windowed(cls, host: PreTrainedConfig) -> Collection[int]:
        return host.window_block_indices if host.window_size > 0 else ()

    @staticmethod
    def accel_relative(host: PreTrainedConfig) -> bool:
        return host.use_relative_position_embeddings

    @classmethod
    def accel_encoder(cls, host: PreTrainedConfig, image_size: Grid) -> Encoder:
        """See `AcceleratedConfig`; some blocks end in a bottleneck of convolutions."""
        encoder = super().accel_encoder(host, image_size)
        # 1 x 1 to half the channels, 3 x 3, and 1 x 1 back.
        bottleneck, blocks = 13 * host.hidden_size**2 // 4, list(encoder.blocks)
        for index in host.residual_block_indices:
            blocks[index] = replace(blocks[index], mlp=blocks[index].mlp + bottleneck)
        return replace(encoder, blocks=tuple(blocks))


class _AcceleratedVitDet(AcceleratedModel):
    accel_ambient = True
    accel_passes_inputs = True  # whether to output attentions

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        size, window = image_grid(self, arguments["pixel_values"]), TokAccelVitDetConfig.accel_window(self.config)
        return MapLayout(size) if window is None else WindowLayout(size, window)


class TokAccelVitDetEncoder(_AcceleratedVitDet, VitDetEncoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    accel_shrinks_windows = True
    forward = record(VitDetEncoder.forward)


class TokAccelVitDetModel(_AcceleratedVitDet, VitDetModel):
    config: TokAccelVitDetConfig
    accel_parts = ("encoder",)
    forward = enter(VitDetModel.forward)


class TokAccelVitDetBackbone(_AcceleratedVitDet, VitDetBackbone):
    config: TokAccelVitDetConfig
    accel_parts = ("encoder",)
    forward = enter(VitDetBackbone.forward, reads=lambda model: tuple(model.out_indices))


register_family(
    TokAccelVitDetConfig,
    (TokAccelVitDetModel, TokAccelVitDetBackbone),
    parts=(TokAccelVitDetEncoder,),
    note="`cluster_grid` counts the clusters of one attention window; padding takes part, as released for SAM",
)
