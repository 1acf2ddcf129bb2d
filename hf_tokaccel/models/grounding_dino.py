"""Grounding DINO: zero-shot object detection on a Swin backbone."""

from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoModel

from ..hosts.config import BackboneHeadConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelGroundingDinoConfig(BackboneHeadConfig, GroundingDinoConfig):
    """`GroundingDinoConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_grounding-dino"


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
