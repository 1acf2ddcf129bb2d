"""CLIP: the vision tower, alone and inside CLIP; the text tower stays native."""

from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelCLIPVisionConfig(AcceleratedConfig, CLIPVisionConfig):
    """`CLIPVisionConfig` with `accel`.

    Dense heads read CLIP's features without a LayerNorm, so reconstruction weights sum to one by default.
    """

    model_type = "tokaccel_clip_vision_model"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelCLIPVisionModel(AcceleratedModel, CLIPVisionModel):
    config: TokAccelCLIPVisionConfig
    accel_layers = "encoder.layers"
    accel_norm = "layer_norm1"
    forward = enter(record(CLIPVisionModel.forward))


class TokAccelCLIPVisionModelWithProjection(AcceleratedModel, CLIPVisionModelWithProjection):
    config: TokAccelCLIPVisionConfig
    accel_parts = ("vision_model",)


class TokAccelCLIPConfig(AcceleratedConfig, CLIPConfig):
    """`CLIPConfig` with `accel`, which applies to its vision tower."""

    model_type = "tokaccel_clip"
    accel_host_path = "vision_config"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelCLIPModel(AcceleratedModel, CLIPModel):
    config: TokAccelCLIPConfig
    accel_parts = ("vision_model",)


class TokAccelCLIPForImageClassification(AcceleratedModel, CLIPForImageClassification):
    config: TokAccelCLIPConfig
    accel_parts = ("vision_model",)


register_family(
    TokAccelCLIPVisionConfig,
    (TokAccelCLIPVisionModel, TokAccelCLIPVisionModelWithProjection),
    note="the vision tower alone",
)
register_family(
    TokAccelCLIPConfig,
    (TokAccelCLIPModel, TokAccelCLIPForImageClassification),
    note="its vision tower; the text tower stays native",
)
