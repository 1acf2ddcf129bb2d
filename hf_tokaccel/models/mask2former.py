"""Mask2Former: universal segmentation (panoptic, instance, semantic) on a Swin backbone."""

from transformers import (
    AutoModelForImageSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelMask2FormerConfig(AcceleratedConfig, Mask2FormerConfig):
    """`Mask2FormerConfig` with `accel`, which applies to its backbone; L2 weights as released."""

    model_type = "tokaccel_mask2former"
    accel_host_path = "backbone_config"


class TokAccelMask2FormerModel(AcceleratedModel, Mask2FormerModel):
    config: TokAccelMask2FormerConfig
    accel_parts = ("pixel_level_module.encoder",)


class TokAccelMask2FormerForUniversalSegmentation(AcceleratedModel, Mask2FormerForUniversalSegmentation):
    config: TokAccelMask2FormerConfig
    accel_parts = ("model.pixel_level_module.encoder",)


register_family(
    TokAccelMask2FormerConfig,
    (TokAccelMask2FormerModel, TokAccelMask2FormerForUniversalSegmentation),
    note="on Swin, as released",
    also={AutoModelForImageSegmentation: TokAccelMask2FormerForUniversalSegmentation},
)
