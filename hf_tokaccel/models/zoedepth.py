"""ZoeDepth: metric depth on a BEiT backbone."""

from transformers import PreTrainedConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import FAMILIES, register_family, unsupported


class TokAccelZoeDepthConfig(AcceleratedConfig, ZoeDepthConfig):
    """`ZoeDepthConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_zoedepth"
    accel_normalization = "l1"

    def accel_host(self) -> PreTrainedConfig:
        if self.backbone_config.model_type not in FAMILIES:
            raise unsupported(f"ZoeDepth on a {self.backbone_config.model_type!r} backbone")
        return self.backbone_config


class TokAccelZoeDepthForDepthEstimation(AcceleratedModel, ZoeDepthForDepthEstimation):
    config: TokAccelZoeDepthConfig
    accel_parts = ("backbone",)


register_family(
    TokAccelZoeDepthConfig, (TokAccelZoeDepthForDepthEstimation,), note="one or several metric heads; BEiT backbone"
)
