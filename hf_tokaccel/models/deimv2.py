"""DEIMv2: object detection on a DINOv3 backbone."""

from transformers import Deimv2Config, Deimv2ForObjectDetection, Deimv2Model

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelDeimv2Config(AcceleratedConfig, Deimv2Config):
    """`Deimv2Config` with `accel`, which applies to its backbone.

    DEIMv2 knows a DINOv3 backbone by its model type, so `backbone_config` stays native.
    """

    model_type = "tokaccel_deimv2"
    accel_host_path = "backbone_config"
    accel_host_types = ("dinov3_vit",)
    accel_normalization = "l1"


class TokAccelDeimv2Model(AcceleratedModel, Deimv2Model):
    config: TokAccelDeimv2Config
    accel_parts = ("conv_encoder.backbone",)


class TokAccelDeimv2ForObjectDetection(AcceleratedModel, Deimv2ForObjectDetection):
    config: TokAccelDeimv2Config
    accel_parts = ("model",)


register_family(
    TokAccelDeimv2Config,
    (TokAccelDeimv2Model, TokAccelDeimv2ForObjectDetection),
    note="on a DINOv3 backbone",
)
