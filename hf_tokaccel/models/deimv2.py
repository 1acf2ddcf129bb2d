"""DEIMv2: object detection on a DINOv3 backbone."""

from transformers import Deimv2Config, Deimv2ForObjectDetection, Deimv2Model, PreTrainedConfig

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family, unsupported


class TokAccelDeimv2Config(AcceleratedConfig, Deimv2Config):
    """`Deimv2Config` with `accel`, which applies to its backbone.

    DEIMv2 knows a DINOv3 backbone by its model type, so `backbone_config` stays native.
    """

    model_type = "tokaccel_deimv2"
    accel_normalization = "l1"

    def accel_host(self) -> PreTrainedConfig:
        if self.backbone_config.model_type != "dinov3_vit":
            raise unsupported(f"DEIMv2 on a {self.backbone_config.model_type!r} backbone, unlike one on 'dinov3_vit',")
        return self.backbone_config


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
