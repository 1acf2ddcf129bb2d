"""DPT: on its own ViT, hybrid (convolutional stem), and on a DINOv2 backbone; depth and semantic segmentation."""

from typing import Any

from transformers import DPTConfig, DPTForDepthEstimation, DPTForSemanticSegmentation, DPTModel
from transformers.models.dpt.modeling_dpt import DPTViTEncoder

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, loop, read, record
from ..registry import register_family


class TokAccelDPTConfig(AcceleratedConfig, DPTConfig):
    """`DPTConfig` with `accel`.

    Released DPT copies the nearest cluster. Nothing after the features cancels a scale per token, so soft weights sum
    to one by default.
    """

    model_type = "tokaccel_dpt"
    accel_expansion = "nearest"
    accel_normalization = "l1"

    @property
    def accel_host_path(self) -> str | None:
        return None if self.is_hybrid or self.backbone_config is None else "backbone_config"


class TokAccelDPTViTEncoder(DPTViTEncoder):
    forward = loop(DPTViTEncoder.forward)


class TokAccelDPTModel(AcceleratedModel, DPTModel):
    config: TokAccelDPTConfig
    accel_layers = "encoder.layer"
    accel_parts = ("encoder",)
    forward = enter(record(DPTModel.forward))


def _read_by_neck(model: Any) -> tuple[int, ...]:
    """Hidden states behind the feature maps; a hybrid's first two come from its convolutional stem."""
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        return tuple(backbone.out_indices)
    blocks = model.config.backbone_out_indices
    return tuple(index + 1 for index in (blocks[2:] if model.config.is_hybrid else blocks))


class TokAccelDPTForDepthEstimation(AcceleratedModel, DPTForDepthEstimation):
    config: TokAccelDPTConfig
    accel_parts = ("dpt", "backbone")
    forward = read(DPTForDepthEstimation.forward, _read_by_neck, patches=False)


class TokAccelDPTForSemanticSegmentation(AcceleratedModel, DPTForSemanticSegmentation):
    config: TokAccelDPTConfig
    accel_parts = ("dpt",)
    forward = read(DPTForSemanticSegmentation.forward, _read_by_neck, patches=False)


register_family(
    TokAccelDPTConfig,
    (TokAccelDPTModel, TokAccelDPTForDepthEstimation, TokAccelDPTForSemanticSegmentation),
    parts=(TokAccelDPTViTEncoder,),
    note="own ViT, hybrid, or DINOv2 backbone; released expansion: nearest",
)
