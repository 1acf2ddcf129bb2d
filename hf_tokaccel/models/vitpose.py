"""ViTPose: human pose estimation, and its backbone with or without a mixture of experts."""

from transformers import (
    VitPoseBackbone,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)
from transformers.models.vitpose_backbone.modeling_vitpose_backbone import VitPoseBackboneEncoder

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, record
from ..registry import register_family


class TokAccelVitPoseBackboneConfig(AcceleratedConfig, VitPoseBackboneConfig):
    """`VitPoseBackboneConfig` with `accel`; feature maps always pass a LayerNorm."""

    model_type = "tokaccel_vitpose_backbone"
    accel_fixed_image_size = True
    accel_prefix = 0


class TokAccelVitPoseBackboneEncoder(AcceleratedModel, VitPoseBackboneEncoder):
    accel_layers = "layer"
    forward = record(VitPoseBackboneEncoder.forward)


class TokAccelVitPoseBackbone(AcceleratedModel, VitPoseBackbone):
    config: TokAccelVitPoseBackboneConfig
    accel_parts = ("encoder",)
    accel_passes_inputs = True  # dataset_index chooses the experts of an image, whatever its tokens are
    forward = enter(VitPoseBackbone.forward, reads=lambda model: tuple(model.out_indices))


class TokAccelVitPoseConfig(AcceleratedConfig, VitPoseConfig):
    """`VitPoseConfig` with `accel`, which applies to its backbone."""

    model_type = "tokaccel_vitpose"
    accel_host_path = "backbone_config"
    accel_fixed_image_size = True


class TokAccelVitPoseForPoseEstimation(AcceleratedModel, VitPoseForPoseEstimation):
    config: TokAccelVitPoseConfig
    accel_parts = ("backbone",)


register_family(
    TokAccelVitPoseBackboneConfig,
    (TokAccelVitPoseBackbone,),
    parts=(TokAccelVitPoseBackboneEncoder,),
    note="with `num_experts` too",
)
register_family(TokAccelVitPoseConfig, (TokAccelVitPoseForPoseEstimation,), note="on its own backbone")
