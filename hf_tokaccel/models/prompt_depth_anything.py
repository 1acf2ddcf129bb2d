"""Prompt Depth Anything: Depth Anything that also takes a low-resolution depth map."""

from transformers import PromptDepthAnythingConfig, PromptDepthAnythingForDepthEstimation

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel
from ..registry import register_family


class TokAccelPromptDepthAnythingConfig(AcceleratedConfig, PromptDepthAnythingConfig):
    """`PromptDepthAnythingConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_prompt_depth_anything"
    accel_host_path = "backbone_config"
    accel_normalization = "l1"


class TokAccelPromptDepthAnythingForDepthEstimation(AcceleratedModel, PromptDepthAnythingForDepthEstimation):
    config: TokAccelPromptDepthAnythingConfig
    accel_parts = ("backbone",)


register_family(TokAccelPromptDepthAnythingConfig, (TokAccelPromptDepthAnythingForDepthEstimation,))
