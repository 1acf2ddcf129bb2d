"""VideoMAE: model and video classification; the tokens of each tubelet slice are clustered on their own."""

from typing import Any

from transformers import (
    PreTrainedConfig,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

from ..checks import UserError
from ..hosts.config import AcceleratedConfig
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel, enter, read, record
from ..registry import register_family


class TokAccelVideoMAEConfig(AcceleratedConfig, VideoMAEConfig):
    """`VideoMAEConfig` with `accel`; `cluster_grid` is that of one tubelet slice.

    Nothing was released for VideoMAE. Its head takes the mean over all tokens before any LayerNorm, so reconstruction
    weights sum to one by default.
    """

    model_type = "tokaccel_videomae"
    accel_normalization = "l1"
    accel_fixed_image_size = True
    accel_prefix = 0

    @staticmethod
    def accel_slices(host: PreTrainedConfig) -> int:
        return host.num_frames // host.tubelet_size


class TokAccelVideoMAEModel(AcceleratedModel, VideoMAEModel):
    config: TokAccelVideoMAEConfig
    accel_layers = "encoder.layer"
    accel_ambient = True

    def accel_layout(self, arguments: dict[str, Any]) -> TokenLayout:
        if arguments.get("bool_masked_pos") is not None:
            raise UserError(
                "bool_masked_pos is not valid while acceleration is on, since the visible tokens are no grid that "
                "could be clustered: pass None, or switch acceleration off with accelerate(model, None)."
            )
        return super().accel_layout(arguments)

    forward = enter(record(VideoMAEModel.forward))


class TokAccelVideoMAEForVideoClassification(AcceleratedModel, VideoMAEForVideoClassification):
    """The head reads the mean over all tokens, or without mean pooling the first one, so those are reconstructed."""

    config: TokAccelVideoMAEConfig
    accel_parts = ("videomae",)
    forward = read(VideoMAEForVideoClassification.forward, lambda model: ())


register_family(
    TokAccelVideoMAEConfig,
    (TokAccelVideoMAEModel, TokAccelVideoMAEForVideoClassification),
    refused={
        VideoMAEForPreTraining: "the visible tokens of masked pre-training are no grid that could be clustered; "
        "accelerate the VideoMAEForVideoClassification that is fine-tuned from it"
    },
    note="clusters inside each tubelet slice",
)
