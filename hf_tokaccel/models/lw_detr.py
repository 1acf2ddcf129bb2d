"""LW-DETR: object detection on a ViT whose image windows lie in the batch dimension."""

from typing import Any

from transformers import LwDetrConfig, LwDetrForObjectDetection, LwDetrModel, PreTrainedConfig
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone, LwDetrViTEncoder

from ..hosts.config import AcceleratedConfig
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel, enter, image_grid, record
from ..registry import register_family


class TokAccelLwDetrViTConfig(AcceleratedConfig, LwDetrViTConfig):
    """`LwDetrViTConfig` with `accel`; `cluster_grid` counts the clusters of one of `num_windows` image parts."""

    model_type = "tokaccel_lw_detr_vit"
    accel_normalization = "l1"
    accel_unit = "a window"

    @classmethod
    def accel_grid(cls, host: PreTrainedConfig, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().accel_grid(host, image_size)
        return height // host.num_windows_side, width // host.num_windows_side


class TokAccelLwDetrViTEncoder(AcceleratedModel, LwDetrViTEncoder):
    accel_layers = "layer"
    forward = record(LwDetrViTEncoder.forward)


class TokAccelLwDetrViTBackbone(AcceleratedModel, LwDetrViTBackbone):
    config: TokAccelLwDetrViTConfig
    accel_parts = ("encoder",)
    forward = enter(LwDetrViTBackbone.forward, reads=lambda model: tuple(model.out_indices))

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        grid = image_grid(self, arguments["pixel_values"], self.config.num_windows_side)
        parts = self.config.num_windows_side**2
        return TokenLayout(grid, prefix=0, unit=TokAccelLwDetrViTConfig.accel_unit, parts=parts)


class TokAccelLwDetrConfig(AcceleratedConfig, LwDetrConfig):
    """`LwDetrConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_lw_detr"
    accel_normalization = "l1"

    def accel_host(self) -> PreTrainedConfig:
        return self.backbone_config


class TokAccelLwDetrModel(AcceleratedModel, LwDetrModel):
    config: TokAccelLwDetrConfig
    accel_parts = ("backbone.backbone",)


class TokAccelLwDetrForObjectDetection(AcceleratedModel, LwDetrForObjectDetection):
    config: TokAccelLwDetrConfig
    accel_parts = ("model.backbone.backbone",)


register_family(
    TokAccelLwDetrViTConfig,
    (TokAccelLwDetrViTBackbone,),
    parts=(TokAccelLwDetrViTEncoder,),
    note="`cluster_grid` counts the clusters of one window",
)
register_family(TokAccelLwDetrConfig, (TokAccelLwDetrModel, TokAccelLwDetrForObjectDetection), note="on its own ViT")
