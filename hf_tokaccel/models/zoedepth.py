"""ZoeDepth: metric depth on a BEiT backbone."""

from transformers import ZoeDepthConfig, ZoeDepthForDepthEstimation

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelZoeDepthConfig(AcceleratedConfig, ZoeDepthConfig):
    """`ZoeDepthConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_zoedepth"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


class TokAccelZoeDepthForDepthEstimation(AcceleratedModel, ZoeDepthForDepthEstimation):
    config: TokAccelZoeDepthConfig
    accel_parts = ("backbone",)


register_family(
    TokAccelZoeDepthConfig, (TokAccelZoeDepthForDepthEstimation,), note="one or several metric heads; BEiT backbone"
)
