"""MM Grounding DINO: zero-shot object detection on a Swin backbone."""

from transformers import MMGroundingDinoConfig, MMGroundingDinoForObjectDetection, MMGroundingDinoModel

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelMMGroundingDinoConfig(AcceleratedConfig, MMGroundingDinoConfig):
    """`MMGroundingDinoConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_mm-grounding-dino"
    accel_host_path = "backbone_config"


class TokAccelMMGroundingDinoModel(AcceleratedModel, MMGroundingDinoModel):
    config: TokAccelMMGroundingDinoConfig
    accel_parts = ("backbone.conv_encoder.model",)


class TokAccelMMGroundingDinoForObjectDetection(AcceleratedModel, MMGroundingDinoForObjectDetection):
    config: TokAccelMMGroundingDinoConfig
    accel_parts = ("model.backbone.conv_encoder.model",)


register_family(
    TokAccelMMGroundingDinoConfig,
    (TokAccelMMGroundingDinoModel, TokAccelMMGroundingDinoForObjectDetection),
    note="on Swin",
)
