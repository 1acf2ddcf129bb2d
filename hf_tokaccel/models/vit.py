"""ViT: the plain transformer, and the Backbone that Transformers lacks."""

from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..hosts.config import AcceleratedConfig
from ..hosts.modeling import AcceleratedModel, enter, hidden_state_indices, read, record, wanted_hidden_states
from ..registry import register_family


class TokAccelViTConfig(AcceleratedConfig, BackboneConfigMixin, ViTConfig):
    """`ViTConfig` with `accel`; the fields of a backbone config (`out_features`, ...) serve `TokAccelViTBackbone`.

    Args:
        apply_layernorm: whether the backbone's feature maps go through the final LayerNorm.
        reshape_hidden_states: whether they are maps (B, C, H, W) or tokens (B, 1 + N, C).
    """

    model_type = "tokaccel_vit"
    accel_fixed_image_size = True

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)


class TokAccelViTModel(AcceleratedModel, ViTModel):
    config: TokAccelViTConfig
    accel_layers = "layers"
    forward = enter(record(ViTModel.forward))


class TokAccelViTForImageClassification(AcceleratedModel, ViTForImageClassification):
    """The head reads the class token only, so nothing is reconstructed."""

    config: TokAccelViTConfig
    accel_parts = ("vit",)
    forward = read(ViTForImageClassification.forward, lambda model: (), patches=False)


class TokAccelViTForMaskedImageModeling(AcceleratedModel, ViTForMaskedImageModeling):
    config: TokAccelViTConfig
    accel_parts = ("vit",)
    forward = read(ViTForMaskedImageModeling.forward, lambda model: ())


class TokAccelViTBackbone(BackboneMixin, TokAccelViTModel):
    """Feature maps (B, C, H, W) after the chosen blocks; loads any ViT checkpoint."""

    native_class = None
    _keys_to_ignore_on_load_unexpected = [r"pooler\.", r"classifier\.", r"decoder\.", r"embeddings\.mask_token"]

    def __init__(self, config: TokAccelViTConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """Images (B, C, height, width) of any size that is a multiple of the patch."""
        return_dict = kwargs.pop("return_dict", None)
        requested = set(hidden_state_indices(self, wanted_hidden_states(self, kwargs)))
        indices = hidden_state_indices(self, self.out_indices)
        kwargs["output_hidden_states"] = sorted(requested.union(indices))
        height, width = pixel_values.shape[-2:]
        image_size = self.embeddings.image_size
        kwargs.setdefault("interpolate_pos_encoding", (height, width) != tuple(image_size))
        output = TokAccelViTModel.forward(
            self, pixel_values, attention_mask=attention_mask, return_dict=True, **kwargs
        )
        grid = (height // self.embeddings.patch_size, width // self.embeddings.patch_size)
        maps = tuple(self._feature_map(output.hidden_states[index], grid) for index in indices)
        states = tuple(state if index in requested else None for index, state in enumerate(output.hidden_states))
        result = BackboneOutput(
            feature_maps=maps,
            hidden_states=states if requested else None,
            attentions=output.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return result if return_dict else result.to_tuple()

    def _feature_map(self, states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.config.apply_layernorm:
            states = self.layernorm(states)
        if not self.config.reshape_hidden_states:
            return states
        return states[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()


register_family(
    TokAccelViTConfig,
    (
        TokAccelViTModel,
        TokAccelViTForImageClassification,
        TokAccelViTForMaskedImageModeling,
        TokAccelViTBackbone,
    ),
    note="the Backbone is ours; classification reconstructs nothing",
)
