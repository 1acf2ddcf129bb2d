"""DINOv2: model, classification, and the Backbone under Depth Anything and DPT."""

from transformers import Dinov2Backbone, Dinov2Config, Dinov2ForImageClassification, Dinov2Model, PreTrainedConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2Encoder

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, loop, read, record
from ..registry import register_family


class Dinov2BlocksConfig(AcceleratedConfig):
    """What the configurations of families on DINOv2's blocks share.

    Nothing was released for DINOv2. Some of its heads read features without a LayerNorm, so reconstruction weights sum
    to one by default.
    """

    accel_normalization = "l1"

    @classmethod
    def accel_mlp(cls, host: PreTrainedConfig) -> int:
        if not host.use_swiglu_ffn:
            return super().accel_mlp(host)
        # Two thirds of the channels, in eights, since the gate is a third matrix.
        hidden = (int(host.hidden_size * host.mlp_ratio * 2 / 3) + 7) // 8 * 8
        return 3 * host.hidden_size * hidden


class TokAccelDinov2Config(Dinov2BlocksConfig, Dinov2Config):
    """`Dinov2Config` with `accel`."""

    model_type = "tokaccel_dinov2"


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
