"""ViT-MSN: a plain ViT trained by masked siamese networks."""

from transformers import ViTMSNConfig, ViTMSNForImageClassification, ViTMSNModel

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..registry import register_family


class TokAccelViTMSNConfig(AcceleratedConfig, ViTMSNConfig):
    """`ViTMSNConfig` with `accel`."""

    model_type = "tokaccel_vit_msn"
    accel_fixed_image_size = True


class TokAccelViTMSNModel(AcceleratedModel, ViTMSNModel):
    config: TokAccelViTMSNConfig
    accel_layers = "layers"
    forward = enter(record(ViTMSNModel.forward))


class TokAccelViTMSNForImageClassification(AcceleratedModel, ViTMSNForImageClassification):
    """The head reads the class token only, so nothing is reconstructed."""

    config: TokAccelViTMSNConfig
    accel_parts = ("vit",)
    forward = read(ViTMSNForImageClassification.forward, lambda model: (), patches=False)


register_family(
    TokAccelViTMSNConfig,
    (TokAccelViTMSNModel, TokAccelViTMSNForImageClassification),
    note="classification reconstructs nothing",
)
