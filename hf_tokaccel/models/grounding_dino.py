"""Grounding DINO: zero-shot object detection on a Swin backbone."""

from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoModel

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelGroundingDinoConfig(AcceleratedConfig, GroundingDinoConfig):
    """`GroundingDinoConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_grounding-dino"
    accel_host_path = "backbone_config"


class TokAccelGroundingDinoModel(AcceleratedModel, GroundingDinoModel):
    config: TokAccelGroundingDinoConfig
    accel_parts = ("backbone.conv_encoder.model",)


class TokAccelGroundingDinoForObjectDetection(AcceleratedModel, GroundingDinoForObjectDetection):
    config: TokAccelGroundingDinoConfig
    accel_parts = ("model.backbone.conv_encoder.model",)


register_family(
    TokAccelGroundingDinoConfig,
    (TokAccelGroundingDinoModel, TokAccelGroundingDinoForObjectDetection),
    note="on Swin",
)
