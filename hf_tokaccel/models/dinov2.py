"""DINOv2: model, classification, and the Backbone under Depth Anything and DPT."""

from transformers import Dinov2Backbone, Dinov2Config, Dinov2ForImageClassification, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Encoder

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, loop, read, record
from ..registry import register_family


class TokAccelDinov2Config(AcceleratedConfig, Dinov2Config):
    """`Dinov2Config` with `accel`.

    Nothing was released for DINOv2. Some of its heads read features without a LayerNorm, so reconstruction weights sum
    to one by default.
    """

    model_type = "tokaccel_dinov2"
    accel_normalization = "l1"


class TokAccelDinov2Encoder(AcceleratedModel, Dinov2Encoder):
    accel_layers = "layer"
    accel_norm = "norm1"
    forward = record(loop(Dinov2Encoder.forward, captures=True))


class TokAccelDinov2Model(AcceleratedModel, Dinov2Model):
    config: TokAccelDinov2Config
    accel_parts = ("encoder",)
    forward = enter(Dinov2Model.forward)


class TokAccelDinov2ForImageClassification(AcceleratedModel, Dinov2ForImageClassification):
    """The head reads the mean over all patch tokens, so those are reconstructed."""

    config: TokAccelDinov2Config
    accel_parts = ("dinov2",)
    forward = read(Dinov2ForImageClassification.forward, lambda model: ())


class TokAccelDinov2Backbone(AcceleratedModel, Dinov2Backbone):
    config: TokAccelDinov2Config
    accel_parts = ("encoder",)
    forward = enter(Dinov2Backbone.forward, reads=lambda model: tuple(model.out_indices))


register_family(
    TokAccelDinov2Config,
    (TokAccelDinov2Model, TokAccelDinov2ForImageClassification, TokAccelDinov2Backbone),
    parts=(TokAccelDinov2Encoder,),
    note="and every AutoBackbone head on it, such as UperNet",
)
