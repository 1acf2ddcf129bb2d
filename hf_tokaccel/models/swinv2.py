"""Swin V2: model, classification, masked image modeling, and Backbone."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer, Swinv2SelfAttention, Swinv2Stage

from ..checks import UserError, as_pair
from ..hosts.modeling import AcceleratedModel
from ..hosts.stages import (
    AcceleratedStage,
    Seen,
    StagedConfig,
    StagedModel,
    masked_by_setting,
    relative_position_index,
    through_clusters,
)
from ..registry import register_family
from ..settings.clustering import TokenClusteringConfig


class TokAccelSwinv2Config(StagedConfig, Swinv2Config):
    """`Swinv2Config` with `accel`; `cluster_after` counts blocks over all stages, `cluster_grid` is that of a window.

    Nothing was released for Swin V2. Its blocks normalise after attention and its feature maps come without a
    LayerNorm, so reconstruction weights sum to one by default.
    """

    model_type = "tokaccel_swinv2"
    accel_normalization = "l1"
    accel_similarities = ("tokens",)

    @staticmethod
    def accel_stage_windows(host: PreTrainedConfig) -> list[int]:
        """The host shrinks a window that is larger than its stage's map at `image_size`."""
        side, patch = as_pair(host.image_size)[0], as_pair(host.patch_size)[0]
        return [min(side // patch // 2**stage, host.window_size) for stage in range(len(host.depths))]

    @classmethod
    def fit_accel(cls, setting: TokenClusteringConfig, host: PreTrainedConfig) -> TokenClusteringConfig:
        if setting.similarity_on not in cls.accel_similarities:
            raise UserError(
                "similarity_on='normalized' is not valid for Swin V2, whose blocks have no LayerNorm before "
                "attention: it must be 'tokens', for example similarity_on='tokens'."
            )
        return super().fit_accel(setting, host)


class TokAccelSwinv2Stage(AcceleratedStage, Swinv2Stage):
    accel_ambient = True
    forward = through_clusters(Swinv2Stage.forward)


class TokAccelSwinv2Layer(Swinv2Layer):
    get_attn_mask = masked_by_setting(Swinv2Layer.get_attn_mask)


class TokAccelSwinv2SelfAttention(Swinv2SelfAttention):
    """Attention in windows of `side` x `side` clusters.

    The host's network of biases gets the distances between cluster centres, in tokens: nothing is resized.
    """

    side: int

    def forward(self, *args: Any, **kwargs: Any) -> tuple:
        device = self.logit_scale.device
        seen = Seen(
            self,
            relative_coords_table=self.cluster_coordinates(device),
            relative_position_index=relative_position_index(self.side, device),
            window_size=(self.side, self.side),
        )
        return Swinv2SelfAttention.forward(seen, *args, **kwargs)

    def cluster_coordinates(self, device: torch.device) -> Tensor:
        """(1, 2 * side - 1, 2 * side - 1, 2) log-spaced distances, rows and then columns."""
        steps = torch.arange(-(self.side - 1), self.side, device=device, dtype=torch.float32)
        distances = []
        for window, pretrained in zip(self.window_size, self.pretrained_window_size, strict=True):
            scaled = 8 * steps * (window / self.side) / ((pretrained if pretrained > 0 else window) - 1)
            distances.append(torch.sign(scaled) * torch.log2(scaled.abs() + 1) / math.log2(8))
        table = torch.stack(torch.meshgrid(distances, indexing="ij"), dim=-1)[None]
        return table.to(self.continuous_position_bias_mlp[0].weight.dtype)


class _AcceleratedSwinv2(StagedModel):
    accel_stage = TokAccelSwinv2Stage
    accel_block = TokAccelSwinv2Layer
    accel_bias = TokAccelSwinv2SelfAttention


class TokAccelSwinv2Model(_AcceleratedSwinv2, Swinv2Model):
    config: TokAccelSwinv2Config
    _no_split_modules = [*Swinv2Model._no_split_modules, "TokAccelSwinv2Stage"]


class TokAccelSwinv2Backbone(_AcceleratedSwinv2, Swinv2Backbone):
    config: TokAccelSwinv2Config
    _no_split_modules = TokAccelSwinv2Model._no_split_modules


class TokAccelSwinv2ForImageClassification(AcceleratedModel, Swinv2ForImageClassification):
    config: TokAccelSwinv2Config
    accel_parts = ("swinv2",)
    _no_split_modules = TokAccelSwinv2Model._no_split_modules


class TokAccelSwinv2ForMaskedImageModeling(AcceleratedModel, Swinv2ForMaskedImageModeling):
    """Masked patches have the mask token, so the grid that is clustered stays whole."""

    config: TokAccelSwinv2Config
    accel_parts = ("swinv2",)
    _no_split_modules = TokAccelSwinv2Model._no_split_modules


register_family(
    TokAccelSwinv2Config,
    (
        TokAccelSwinv2Model,
        TokAccelSwinv2ForImageClassification,
        TokAccelSwinv2ForMaskedImageModeling,
        TokAccelSwinv2Backbone,
    ),
    note="clusters inside the windows of one stage; `similarity_on` tokens only",
)
