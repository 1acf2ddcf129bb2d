"""MaskFormer: segmentation by masks, on its own kind of Swin or any other supported backbone."""

from transformers import (
    AutoModelForImageSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelMaskFormerConfig(AcceleratedConfig, MaskFormerConfig):
    """`MaskFormerConfig` with `accel`, which applies to its backbone.

    The host makes a `swin` backbone one of type `maskformer-swin`, which has other weight names.
    """

    model_type = "tokaccel_maskformer"
    accel_host_path = "backbone_config"


class TokAccelMaskFormerModel(AcceleratedModel, MaskFormerModel):
    config: TokAccelMaskFormerConfig
    accel_parts = ("pixel_level_module.encoder",)


class TokAccelMaskFormerForInstanceSegmentation(AcceleratedModel, MaskFormerForInstanceSegmentation):
    config: TokAccelMaskFormerConfig
    accel_parts = ("model.pixel_level_module.encoder",)


register_family(
    TokAccelMaskFormerConfig,
    (TokAccelMaskFormerModel, TokAccelMaskFormerForInstanceSegmentation),
    note="on its own kind of Swin",
    also={AutoModelForImageSegmentation: TokAccelMaskFormerForInstanceSegmentation},
)
