"""SAM-HQ: SAM whose mask decoder also reads the vision encoder's states after the global blocks."""

import functools
from collections.abc import Callable

from transformers import SamHQConfig, SamHQModel, SamHQVisionConfig, SamHQVisionModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionEncoder

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, hidden_state_indices, record, wanted_hidden_states
from ..hosts.track import ambient_track
from ..registry import register_family
from .sam import WindowedVisionConfig, WindowedVisionEncoder, prompted


class TokAccelSamHQVisionConfig(WindowedVisionConfig, SamHQVisionConfig):
    """`SamHQVisionConfig` with `accel`; `cluster_grid` is the side of the clusters of one attention window.

    Nothing was released for SAM-HQ. Its decoder reads states without a LayerNorm, so reconstruction weights sum to one
    by default.
    """

    model_type = "tokaccel_sam_hq_vision_model"
    accel_normalization = "l1"


def global_outputs(encoder: SamHQVisionEncoder) -> list[int]:
    """The hidden states that native gives as intermediate embeddings: those after the blocks without windows."""
    return [index + 1 for index, layer in enumerate(encoder.layers.children()) if layer.window_size == 0]


def record_global(recorded_forward: Callable) -> Callable:
    """Wraps a recorded forward whose `enter` reads `global_outputs`: these become the intermediate embeddings."""

    @functools.wraps(recorded_forward)
    def forward(self, *args, **kwargs):
        track = ambient_track.get() if self.accel else None
        if track is None:
            return recorded_forward(self, *args, **kwargs)
        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        requested = wanted_hidden_states(self, kwargs)
        fields = {**(output := recorded_forward(self, *args, return_dict=True, **kwargs))}
        # What the caller did not ask for is left out: native hands on the second field by its position.
        fields.pop("hidden_states", None)
        attentions = fields.pop("attentions", None)
        fields["intermediate_embeddings"] = [track.hidden_states[index] for index in global_outputs(self)]
        output = type(output)(**fields)
        if requested is not False:
            wanted = set(hidden_state_indices(self, requested))
            states = enumerate(track.hidden_states)
            output["hidden_states"] = tuple(state if index in wanted else None for index, state in states)
        if attentions is not None:
            output["attentions"] = attentions
        return output if return_dict else output.to_tuple()

    return forward


class TokAccelSamHQVisionEncoder(WindowedVisionEncoder, SamHQVisionEncoder):
    forward = enter(record_global(record(SamHQVisionEncoder.forward)), reads=global_outputs)


class TokAccelSamHQVisionModel(AcceleratedModel, SamHQVisionModel):
    config: TokAccelSamHQVisionConfig
    accel_parts = ("vision_encoder",)


class TokAccelSamHQConfig(AcceleratedConfig, SamHQConfig):
    """`SamHQConfig` with `accel`, which applies to its vision encoder."""

    model_type = "tokaccel_sam_hq"
    accel_host_path = "vision_config"
    accel_normalization = "l1"
    accel_fixed_image_size = True


class TokAccelSamHQModel(AcceleratedModel, SamHQModel):
    """Prompt encoder and mask decoder read the embeddings, and the intermediate ones, of all tokens."""

    config: TokAccelSamHQConfig
    accel_parts = ("vision_encoder",)
    forward = prompted(SamHQModel.forward)


register_family(
    TokAccelSamHQVisionConfig,
    (TokAccelSamHQVisionModel,),
    parts=(TokAccelSamHQVisionEncoder,),
    note="the vision encoder alone; `cluster_grid` counts the clusters of one attention window",
)
register_family(
    TokAccelSamHQConfig,
    (TokAccelSamHQModel,),
    note="its vision encoder; `cluster_grid` counts the clusters of one attention window",
)
