"""UperNet: semantic segmentation on any supported backbone."""

from transformers import UperNetConfig, UperNetForSemanticSegmentation

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelUperNetConfig(AcceleratedConfig, UperNetConfig):
    """`UperNetConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_upernet"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


class TokAccelUperNetForSemanticSegmentation(AcceleratedModel, UperNetForSemanticSegmentation):
    config: TokAccelUperNetConfig
    accel_parts = ("backbone",)


register_family(
    TokAccelUperNetConfig, (TokAccelUperNetForSemanticSegmentation,), note="on any supported Backbone, such as BEiT"
)
