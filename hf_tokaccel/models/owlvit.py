"""OWL-ViT: open-vocabulary detection, whose heads read every patch token; the text tower stays native."""

from transformers import (
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTModel,
    OwlViTVisionConfig,
    OwlViTVisionModel,
)
from transformers.models.owlvit.modeling_owlvit import OwlViTVisionTransformer

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelOwlViTVisionConfig(AcceleratedConfig, OwlViTVisionConfig):
    """`OwlViTVisionConfig` with `accel`; reconstruction weights sum to one by default, as for CLIP."""

    model_type = "tokaccel_owlvit_vision_model"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelOwlViTVisionTransformer(AcceleratedModel, OwlViTVisionTransformer):
    config: TokAccelOwlViTVisionConfig
    accel_layers = "encoder.layers"
    accel_norm = "layer_norm1"
    forward = enter(record(OwlViTVisionTransformer.forward))


class TokAccelOwlViTVisionModel(AcceleratedModel, OwlViTVisionModel):
    config: TokAccelOwlViTVisionConfig
    accel_parts = ("vision_model",)


class TokAccelOwlViTConfig(AcceleratedConfig, OwlViTConfig):
    """`OwlViTConfig` with `accel`, which applies to its vision tower."""

    model_type = "tokaccel_owlvit"
    accel_host_path = "vision_config"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelOwlViTModel(AcceleratedModel, OwlViTModel):
    config: TokAccelOwlViTConfig
    accel_parts = ("vision_model",)


class TokAccelOwlViTForObjectDetection(AcceleratedModel, OwlViTForObjectDetection):
    """Each patch token predicts a box, so all are reconstructed."""

    config: TokAccelOwlViTConfig
    accel_parts = ("owlvit",)


register_family(
    TokAccelOwlViTVisionConfig,
    (TokAccelOwlViTVisionModel,),
    parts=(TokAccelOwlViTVisionTransformer,),
    note="the vision tower alone",
)
register_family(
    TokAccelOwlViTConfig,
    (TokAccelOwlViTModel, TokAccelOwlViTForObjectDetection),
    note="its vision tower; the text tower stays native",
)
