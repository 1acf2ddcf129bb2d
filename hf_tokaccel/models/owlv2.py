"""OWLv2: open-vocabulary detection, whose heads read every patch token; the text tower stays native."""

from transformers import (
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Model,
    Owlv2VisionConfig,
    Owlv2VisionModel,
)
from transformers.models.owlv2.modeling_owlv2 import Owlv2VisionTransformer

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelOwlv2VisionConfig(AcceleratedConfig, Owlv2VisionConfig):
    """`Owlv2VisionConfig` with `accel`; reconstruction weights sum to one by default, as for CLIP."""

    model_type = "tokaccel_owlv2_vision_model"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelOwlv2VisionTransformer(AcceleratedModel, Owlv2VisionTransformer):
    config: TokAccelOwlv2VisionConfig
    accel_layers = "encoder.layers"
    accel_norm = "layer_norm1"
    forward = enter(record(Owlv2VisionTransformer.forward))


class TokAccelOwlv2VisionModel(AcceleratedModel, Owlv2VisionModel):
    config: TokAccelOwlv2VisionConfig
    accel_parts = ("vision_model",)


class TokAccelOwlv2Config(AcceleratedConfig, Owlv2Config):
    """`Owlv2Config` with `accel`, which applies to its vision tower."""

    model_type = "tokaccel_owlv2"
    accel_host_path = "vision_config"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelOwlv2Model(AcceleratedModel, Owlv2Model):
    config: TokAccelOwlv2Config
    accel_parts = ("vision_model",)


class TokAccelOwlv2ForObjectDetection(AcceleratedModel, Owlv2ForObjectDetection):
    """Each patch token predicts a box, so all are reconstructed."""

    config: TokAccelOwlv2Config
    accel_parts = ("owlv2",)


register_family(
    TokAccelOwlv2VisionConfig,
    (TokAccelOwlv2VisionModel,),
    parts=(TokAccelOwlv2VisionTransformer,),
    note="the vision tower alone",
)
register_family(
    TokAccelOwlv2Config,
    (TokAccelOwlv2Model, TokAccelOwlv2ForObjectDetection),
    note="its vision tower; the text tower stays native",
)
