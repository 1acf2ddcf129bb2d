"""ViTDet: model, and the Backbone under ViTMatte; window attention, global blocks and residual convolutions."""

from typing import Any

from transformers import PreTrainedConfig, VitDetBackbone, VitDetConfig, VitDetModel
from transformers.models.vitdet.modeling_vitdet import VitDetEncoder

from ..hosts.config import AcceleratedConfig
from ..hosts.graft import change
from ..hosts.layout import MapLayout, TokenLayout, WindowLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, record
from ..registry import register_family
from ..settings.clustering import TokenClusteringConfig


class TokAccelVitDetConfig(AcceleratedConfig, VitDetConfig):
    """`VitDetConfig` with `accel`; with window blocks, `cluster_grid` is the side of the clusters of one window.

    As released for SAM, whose encoder is built alike, clusters of the zero padding take part. Feature maps come
    without a LayerNorm, so reconstruction weights sum to one by default.
    """

    model_type = "tokaccel_vitdet"
    accel_normalization = "l1"

    @staticmethod
    def accel_window(host: PreTrainedConfig) -> int | None:
        return host.window_size if host.window_size > 0 and host.window_block_indices else None


class _AcceleratedVitDet(AcceleratedModel):
    accel_ambient = True

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        size, window = image_grid(self, arguments["pixel_values"]), TokAccelVitDetConfig.accel_window(self.config)
        return MapLayout(size) if window is None else WindowLayout(size, window)

    def accel_block_inputs(self, track: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs  # whether to output attentions


class TokAccelVitDetEncoder(_AcceleratedVitDet, VitDetEncoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    forward = record(VitDetEncoder.forward)

    def install_accel(self, accel: TokenClusteringConfig | None) -> None:
        super().install_accel(accel)
        if accel is None:
            return
        # The clusters of a window are a window; relative positions are resized by the host.
        for layer in list(self.layer.children())[accel.cluster_after : accel.reconstruct_after]:
            if layer.window_size > 0:
                change(layer, window_size=accel.cluster_grid[0])


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
