"""ViTMatte: image matting on a ViTDet backbone; images have a fourth channel, the trimap."""

from transformers import VitMatteConfig, VitMatteForImageMatting

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelVitMatteConfig(AcceleratedConfig, VitMatteConfig):
    """`VitMatteConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_vitmatte"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


class TokAccelVitMatteForImageMatting(AcceleratedModel, VitMatteForImageMatting):
    config: TokAccelVitMatteConfig
    accel_parts = ("backbone",)


register_family(TokAccelVitMatteConfig, (TokAccelVitMatteForImageMatting,), note="on ViTDet")
