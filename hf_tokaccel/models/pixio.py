"""Pixio: a plain ViT with several class tokens; model and Backbone."""

from transformers import PixioBackbone, PixioConfig, PixioModel

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..registry import register_family


class TokAccelPixioConfig(AcceleratedConfig, PixioConfig):
    """`PixioConfig` with `accel`; reconstruction weights sum to one by default, as for DINOv2."""

    model_type = "tokaccel_pixio"
    accel_normalization = "l1"
    accel_prefix, accel_prefix_field = 0, "n_cls_tokens"


class TokAccelPixioModel(AcceleratedModel, PixioModel):
    config: TokAccelPixioConfig
    accel_layers = "layers"
    forward = enter(record(PixioModel.forward))


class TokAccelPixioBackbone(AcceleratedModel, PixioBackbone):
    config: TokAccelPixioConfig
    accel_parts = ("pixio",)
    forward = read(PixioBackbone.forward, lambda model: tuple(model.out_indices), patches=False)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: see `TokAccelDINOv3ViTBackbone`."""
        return False


register_family(
    TokAccelPixioConfig, (TokAccelPixioModel, TokAccelPixioBackbone), note="and every AutoBackbone head on it"
)
