"""OneFormer: one model for panoptic, instance and semantic segmentation, on a Swin backbone."""

from transformers import (
    AutoModelForImageSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelOneFormerConfig(AcceleratedConfig, OneFormerConfig):
    """`OneFormerConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_oneformer"
    accel_host_path = "backbone_config"


class TokAccelOneFormerModel(AcceleratedModel, OneFormerModel):
    config: TokAccelOneFormerConfig
    accel_parts = ("pixel_level_module.encoder",)


class TokAccelOneFormerForUniversalSegmentation(AcceleratedModel, OneFormerForUniversalSegmentation):
    config: TokAccelOneFormerConfig
    accel_parts = ("model.pixel_level_module.encoder",)


register_family(
    TokAccelOneFormerConfig,
    (TokAccelOneFormerModel, TokAccelOneFormerForUniversalSegmentation),
    note="on Swin; DiNAT backbones are refused",
    also={AutoModelForImageSegmentation: TokAccelOneFormerForUniversalSegmentation},
)
