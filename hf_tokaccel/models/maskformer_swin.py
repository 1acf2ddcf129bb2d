"""MaskFormer's own Swin: model and Backbone; it returns states around every block, `swin` those of its stages."""

from typing import Any

from torch import Tensor
from transformers import MaskFormerSwinBackbone, MaskFormerSwinConfig
from transformers.models.maskformer.modeling_maskformer_swin import (
    MaskFormerSwinLayer,
    MaskFormerSwinModel,
    MaskFormerSwinSelfAttention,
    MaskFormerSwinStage,
)

from ..hosts.modeling import AcceleratedModel, read, run_tracked
from ..hosts.stages import (
    AcceleratedStage,
    Seen,
    StagedConfig,
    StagedModel,
    masked_by_setting,
    relative_position_index,
    resize_bias_table,
)
from ..hosts.track import ambient_read
from ..registry import register_family

# What the stages get for `output_hidden_states` where only the last state of each is read; true, as its host expects.
_ENDS = "ends of stages"


class TokAccelMaskFormerSwinConfig(StagedConfig, MaskFormerSwinConfig):
    """`MaskFormerSwinConfig` with `accel`; see `TokAccelSwinConfig`."""

    model_type = "tokaccel_maskformer-swin"


class TokAccelMaskFormerSwinStage(AcceleratedStage, MaskFormerSwinStage):
    accel_ambient = True

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        output_attentions: bool = False,
        output_hidden_states: bool | str = False,
    ) -> tuple:
        count = len(self.blocks)
        # Its host takes one of these states for the attentions.
        everything = output_hidden_states and (output_attentions or output_hidden_states != _ENDS)
        track = self.start(input_dimensions, range(count + 1) if everything else ())
        arguments = (hidden_states, input_dimensions, output_attentions, output_hidden_states)
        output, sizes, states = run_tracked(MaskFormerSwinStage.forward, self, track, arguments, {})
        track.check_ran()
        if everything:
            # Before and after each block, so most of them twice.
            states = tuple(track.hidden_states[(index + 1) // 2] for index in range(2 * count))
        elif states is not None:
            states = (None,) * (2 * count - 1) + states[-1:]
        return output, sizes, states


class TokAccelMaskFormerSwinLayer(MaskFormerSwinLayer):
    get_attn_mask = masked_by_setting(MaskFormerSwinLayer.get_attn_mask)


class TokAccelMaskFormerSwinSelfAttention(MaskFormerSwinSelfAttention):
    """Attention in windows of `side` x `side` clusters, with the host's table of biases."""

    side: int

    def forward(self, *args: Any, **kwargs: Any) -> tuple:
        table = self.relative_position_bias_table
        seen = Seen(
            self,
            relative_position_bias_table=resize_bias_table(table, self.side),
            relative_position_index=relative_position_index(self.side, table.device),
            window_size=(self.side, self.side),
        )
        return MaskFormerSwinSelfAttention.forward(seen, *args, **kwargs)


class TokAccelMaskFormerSwinModel(StagedModel, MaskFormerSwinModel):
    config: TokAccelMaskFormerSwinConfig
    accel_stage = TokAccelMaskFormerSwinStage
    accel_block = TokAccelMaskFormerSwinLayer
    accel_bias = TokAccelMaskFormerSwinSelfAttention
    _no_split_modules = [*MaskFormerSwinModel._no_split_modules, "TokAccelMaskFormerSwinStage"]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.accel is not None and output_hidden_states and ambient_read.get() is not None:
            output_hidden_states = _ENDS
        return super().forward(
            pixel_values, output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict, **kwargs
        )


class TokAccelMaskFormerSwinBackbone(AcceleratedModel, MaskFormerSwinBackbone):
    config: TokAccelMaskFormerSwinConfig
    accel_parts = ("model",)
    accel_ambient = True
    _no_split_modules = TokAccelMaskFormerSwinModel._no_split_modules
    # The host asks its model for all states, whoever reads them.
    forward = read(MaskFormerSwinBackbone.forward, lambda model: ())


register_family(
    TokAccelMaskFormerSwinConfig,
    (TokAccelMaskFormerSwinModel, TokAccelMaskFormerSwinBackbone),
    note="clusters inside the windows of one stage",
)
