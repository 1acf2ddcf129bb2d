"""Swin: model, classification, masked image modeling, and the Backbone under Mask2Former and many others."""

from torch import Tensor
from transformers import (
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
)
from transformers.models.swin.modeling_swin import SwinLayer, SwinRelativePositionBias, SwinStage

from ..hosts.modeling import AcceleratedModel
from ..hosts.stages import (
    AcceleratedStage,
    Seen,
    StagedConfig,
    StagedModel,
    masked_by_setting,
    relative_position_index,
    resize_bias_table,
    through_clusters,
)
from ..registry import register_family


class TokAccelSwinConfig(StagedConfig, SwinConfig):
    """`SwinConfig` with `accel`; `cluster_after` counts blocks over all stages, `cluster_grid` is that of a window."""

    model_type = "tokaccel_swin"


class TokAccelSwinStage(AcceleratedStage, SwinStage):
    forward = through_clusters(SwinStage.forward)


class TokAccelSwinLayer(SwinLayer):
    get_attn_mask = masked_by_setting(SwinLayer.get_attn_mask)


class TokAccelSwinRelativePositionBias(SwinRelativePositionBias):
    """Biases of a window of `side` x `side` clusters, from the host's table."""

    side: int

    def forward(self) -> Tensor:
        table = self.relative_position_bias_table
        seen = Seen(
            self,
            relative_position_bias_table=resize_bias_table(table, self.side),
            relative_position_index=relative_position_index(self.side, table.device).flatten(),
            window_area=self.side**2,
        )
        return SwinRelativePositionBias.forward(seen)


class TokAccelSwinModel(StagedModel, SwinModel):
    config: TokAccelSwinConfig
    accel_stage = TokAccelSwinStage
    accel_block = TokAccelSwinLayer
    accel_bias_path = "attention.relative_position_bias"
    accel_bias = TokAccelSwinRelativePositionBias
    _no_split_modules = [*SwinModel._no_split_modules, "TokAccelSwinStage"]


class TokAccelSwinForImageClassification(AcceleratedModel, SwinForImageClassification):
    config: TokAccelSwinConfig
    accel_parts = ("swin",)
    _no_split_modules = TokAccelSwinModel._no_split_modules


class TokAccelSwinForMaskedImageModeling(AcceleratedModel, SwinForMaskedImageModeling):
    """Masked patches have the mask token, so the grid that is clustered stays whole."""

    config: TokAccelSwinConfig
    accel_parts = ("swin",)
    _no_split_modules = TokAccelSwinModel._no_split_modules


class TokAccelSwinBackbone(AcceleratedModel, SwinBackbone):
    config: TokAccelSwinConfig
    accel_parts = ("swin",)
    _no_split_modules = TokAccelSwinModel._no_split_modules


register_family(
    TokAccelSwinConfig,
    (
        TokAccelSwinModel,
        TokAccelSwinForImageClassification,
        TokAccelSwinForMaskedImageModeling,
        TokAccelSwinBackbone,
    ),
    note="clusters inside the windows of one stage; `cluster_grid` counts those of one window",
)
