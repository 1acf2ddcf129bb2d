"""LW-DETR: object detection on a ViT whose image windows lie in the batch dimension."""

from collections.abc import Collection

from transformers import LwDetrConfig, LwDetrForObjectDetection, LwDetrModel, PreTrainedConfig
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone, LwDetrViTEncoder

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelLwDetrViTConfig(AcceleratedConfig, LwDetrViTConfig):
    """`LwDetrViTConfig` with `accel`; `cluster_grid` counts the clusters of one of `num_windows` image parts."""

    model_type = "tokaccel_lw_detr_vit"
    accel_normalization = "l1"
    accel_unit = "a window"
    accel_prefix = 0

    @staticmethod
    def accel_parts(host: PreTrainedConfig) -> int:
        return host.num_windows_side

    @classmethod
    def accel_windowed(cls, host: PreTrainedConfig) -> Collection[int]:
        return host.window_block_indices


class TokAccelLwDetrViTEncoder(AcceleratedModel, LwDetrViTEncoder):
    accel_layers = "layer"
    forward = record(LwDetrViTEncoder.forward)


class TokAccelLwDetrViTBackbone(AcceleratedModel, LwDetrViTBackbone):
    config: TokAccelLwDetrViTConfig
    accel_parts = ("encoder",)
    forward = enter(LwDetrViTBackbone.forward, reads=lambda model: tuple(model.out_indices))


class TokAccelLwDetrConfig(AcceleratedConfig, LwDetrConfig):
    """`LwDetrConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_lw_detr"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


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
