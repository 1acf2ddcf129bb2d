"""UperNet: semantic segmentation on any supported backbone."""

from transformers import PreTrainedConfig, UperNetConfig, UperNetForSemanticSegmentation

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import FAMILIES, register_family, unsupported


class TokAccelUperNetConfig(AcceleratedConfig, UperNetConfig):
    """`UperNetConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_upernet"
    accel_normalization = "l1"

    def accel_host(self) -> PreTrainedConfig:
        if self.backbone_config.model_type not in FAMILIES:
            raise unsupported(f"UperNet on a {self.backbone_config.model_type!r} backbone")
        return self.backbone_config


class TokAccelUperNetForSemanticSegmentation(AcceleratedModel, UperNetForSemanticSegmentation):
    config: TokAccelUperNetConfig
    accel_parts = ("backbone",)


register_family(
    TokAccelUperNetConfig, (TokAccelUperNetForSemanticSegmentation,), note="on any supported Backbone, such as BEiT"
)
