"""CLIPSeg: the vision tower whose features its decoder segments; text tower and decoder stay native."""

from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegModel,
    CLIPSegVisionConfig,
    CLIPSegVisionModel,
)

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelCLIPSegVisionConfig(AcceleratedConfig, CLIPSegVisionConfig):
    """`CLIPSegVisionConfig` with `accel`; reconstruction weights sum to one by default, as for CLIP."""

    model_type = "tokaccel_clipseg_vision_model"
    accel_normalization = "l1"


class TokAccelCLIPSegVisionModel(AcceleratedModel, CLIPSegVisionModel):
    config: TokAccelCLIPSegVisionConfig
    accel_layers = "encoder.layers"
    accel_norm = "layer_norm1"
    forward = enter(record(CLIPSegVisionModel.forward))


class TokAccelCLIPSegConfig(AcceleratedConfig, CLIPSegConfig):
    """`CLIPSegConfig` with `accel`, which applies to its vision tower."""

    model_type = "tokaccel_clipseg"
    accel_host_path = "vision_config"
    accel_normalization = "l1"


class TokAccelCLIPSegModel(AcceleratedModel, CLIPSegModel):
    config: TokAccelCLIPSegConfig
    accel_parts = ("vision_model",)


class TokAccelCLIPSegForImageSegmentation(AcceleratedModel, CLIPSegForImageSegmentation):
    """The decoder reads the states after the blocks `extract_layers`; only those and the last one are rebuilt.

    Prompts that are images run through the accelerated tower, too.
    """

    config: TokAccelCLIPSegConfig
    accel_parts = ("clip",)


register_family(TokAccelCLIPSegVisionConfig, (TokAccelCLIPSegVisionModel,), note="the vision tower alone")
register_family(
    TokAccelCLIPSegConfig,
    (TokAccelCLIPSegModel, TokAccelCLIPSegForImageSegmentation),
    note="its vision tower; text tower and decoder stay native",
)
