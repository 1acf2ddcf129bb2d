"""DINOv2 with registers: model, classification, and the Backbone under dense heads."""

from transformers import (
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersEncoder

from ..hosts.modeling import AcceleratedModel, enter, loop, read, record
from ..registry import register_family
from .dinov2 import Dinov2BlocksConfig


class TokAccelDinov2WithRegistersConfig(Dinov2BlocksConfig, Dinov2WithRegistersConfig):
    """`Dinov2WithRegistersConfig` with `accel`."""

    model_type = "tokaccel_dinov2_with_registers"
    accel_prefix_field = "num_register_tokens"


class TokAccelDinov2WithRegistersEncoder(AcceleratedModel, Dinov2WithRegistersEncoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    forward = record(loop(Dinov2WithRegistersEncoder.forward, captures=True))


class TokAccelDinov2WithRegistersModel(AcceleratedModel, Dinov2WithRegistersModel):
    config: TokAccelDinov2WithRegistersConfig
    accel_parts = ("encoder",)
    forward = enter(Dinov2WithRegistersModel.forward)


class TokAccelDinov2WithRegistersForImageClassification(AcceleratedModel, Dinov2WithRegistersForImageClassification):
    """The head reads the mean over all patch tokens, so those are reconstructed."""

    config: TokAccelDinov2WithRegistersConfig
    accel_parts = ("dinov2_with_registers",)
    forward = read(Dinov2WithRegistersForImageClassification.forward, lambda model: ())


class TokAccelDinov2WithRegistersBackbone(AcceleratedModel, Dinov2WithRegistersBackbone):
    config: TokAccelDinov2WithRegistersConfig
    accel_parts = ("encoder",)
    forward = enter(Dinov2WithRegistersBackbone.forward, reads=lambda model: tuple(model.out_indices))


register_family(
    TokAccelDinov2WithRegistersConfig,
    (
        TokAccelDinov2WithRegistersModel,
        TokAccelDinov2WithRegistersForImageClassification,
        TokAccelDinov2WithRegistersBackbone,
    ),
    parts=(TokAccelDinov2WithRegistersEncoder,),
    note="and every AutoBackbone head on it",
)
