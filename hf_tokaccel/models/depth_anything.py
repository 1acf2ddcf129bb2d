"""Depth Anything (v1, v2, metric): a DPT-like head on a DINOv2 backbone."""

from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelDepthAnythingConfig(AcceleratedConfig, DepthAnythingConfig):
    """`DepthAnythingConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_depth_anything"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


class TokAccelDepthAnythingForDepthEstimation(AcceleratedModel, DepthAnythingForDepthEstimation):
    config: TokAccelDepthAnythingConfig
    accel_parts = ("backbone",)


register_family(TokAccelDepthAnythingConfig, (TokAccelDepthAnythingForDepthEstimation,), note="v1, v2 and metric")
