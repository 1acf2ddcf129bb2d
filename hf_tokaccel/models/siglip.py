"""SigLIP: the vision tower, alone and inside SigLIP; the text tower stays native."""

from transformers import (
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelSiglipVisionConfig(AcceleratedConfig, SiglipVisionConfig):
    """`SiglipVisionConfig` with `accel`; reconstruction weights sum to one by default, as for CLIP."""

    model_type = "tokaccel_siglip_vision_model"
    accel_normalization = "l1"
    accel_fixed_image_size = True
    accel_prefix = 0


class TokAccelSiglipVisionModel(AcceleratedModel, SiglipVisionModel):
    """Its pooling head attends to all patch tokens, so those are reconstructed."""

    config: TokAccelSiglipVisionConfig
    accel_layers = "encoder.layers"
    accel_norm = "layer_norm1"
    forward = enter(record(SiglipVisionModel.forward))


class TokAccelSiglipConfig(AcceleratedConfig, SiglipConfig):
    """`SiglipConfig` with `accel`, which applies to its vision tower."""

    model_type = "tokaccel_siglip"
    accel_host_path = "vision_config"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelSiglipModel(AcceleratedModel, SiglipModel):
    config: TokAccelSiglipConfig
    accel_parts = ("vision_model",)


class TokAccelSiglipForImageClassification(AcceleratedModel, SiglipForImageClassification):
    config: TokAccelSiglipConfig
    accel_parts = ("vision_model",)


register_family(TokAccelSiglipVisionConfig, (TokAccelSiglipVisionModel,), note="the vision tower alone")
register_family(
    TokAccelSiglipConfig,
    (TokAccelSiglipModel, TokAccelSiglipForImageClassification),
    note="its vision tower; the text tower stays native",
)
