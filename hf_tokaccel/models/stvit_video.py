"""STViT on ViViT, EXPERIMENTAL: of its video models only numbers were ever published.

The paper's text says that each frame has semantic tokens of its own; the rest is our reading. Base layers attend over
space and time, semantic tokens are generated in each slice of tubelets from that slice alone, and the layers after
that run on the semantic tokens of all slices together.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VivitConfig, VivitForVideoClassification, VivitModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vivit.modeling_vivit import (
    VivitAttention,
    VivitLayer,
    VivitPreTrainedModel,
    VivitTubeletEmbeddings,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..semantic.layers import SemanticAttention, SemanticLayer
from ..semantic.modeling import SemanticConfig, SemanticFamily, SemanticModel, register_semantic_family
from ..semantic.pooling import GlobalCenters, SemanticPooling
from ..settings.semantic import SemanticTokenConfig
from ..upstream import capture_outputs
from .stvit import fit_global, generate, global_layers, patch_parameters, refuse_masks


class TokAccelSTViTVideoConfig(SemanticConfig, VivitConfig):
    """`VivitConfig` with `accel`, whose `token_grid` is that of one slice of tubelets. Experimental.

    Args:
        drop_path_rate: probability that training skips a branch of the last layer; it rises linearly from 0 in the
            first one.
    """

    model_type = "tokaccel_stvit_video"

    drop_path_rate: float | int = 0.0

    def fit_accel(self, setting: SemanticTokenConfig) -> SemanticTokenConfig:
        """As for images, with the tokens of one slice.

        Raises:
            ValueError: when tokens or layers do not fit this model, or the setting is one of Swin's.
        """
        return fit_global(setting, self.num_hidden_layers, tubelet_map(self)[1:])


def tubelet_map(config: VivitConfig) -> tuple[int, int, int]:
    """(T, H, W) tokens of a video."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    time, rows, columns = config.tubelet_size
    return config.num_frames // time, height // rows, width // columns


class STViTVideoEmbeddings(nn.Module):
    """Tubelets with their positions; there is no class token."""

    def __init__(self, config: TokAccelSTViTVideoConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embeddings = VivitTubeletEmbeddings(config)
        count = self.patch_embeddings.num_patches
        self.position_embeddings = nn.Parameter(torch.zeros(1, count, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (B, T * H * W, C) of videos (B, frames, channels, height, width).

        Raises:
            ValueError: on another number of frames or image size than the configuration's.
        """
        frames, size = pixel_values.shape[1], tuple(pixel_values.shape[-2:])
        expected = tuple(self.patch_embeddings.image_size)
        if (frames, *size) != (self.config.num_frames, *expected):
            raise ValueError(
                f"Input of {frames} frames of size {size} is not valid: this model was built for "
                f"{self.config.num_frames} frames of size {expected}, so sample and resize the video to these."
            )
        return self.dropout(self.patch_embeddings(pixel_values) + self.position_embeddings)


class STViTVideoPreTrainedModel(SemanticModel, VivitPreTrainedModel):
    config: TokAccelSTViTVideoConfig
    _no_split_modules = ["STViTVideoEmbeddings", "VivitLayer", "SemanticLayer"]
    _can_record_outputs = {
        "hidden_states": [VivitLayer, SemanticLayer],
        "attentions": [VivitAttention, SemanticAttention],
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, STViTVideoEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)


class TokAccelSTViTVideoModel(STViTVideoPreTrainedModel):
    """Base layers on all tokens, generation per slice, semantic layers over the tokens of all slices. Experimental.

    Warns:
        UserWarning: always, that nothing of this was published.
    """

    def __init__(self, config: TokAccelSTViTVideoConfig) -> None:
        super().__init__(config)
        warnings.warn(
            f"{type(self).__name__} is experimental: of STViT's video models only numbers were ever published, so how "
            "semantic tokens of slices are generated and joined is our reading, which nothing could be compared with.",
            stacklevel=2,
        )
        # Kept, since torch.compile cannot trace how it is read from the configuration, where it stands once built.
        self.setting = setting = config.accel_view()
        size, count = config.hidden_size, setting.token_grid[0] * setting.token_grid[1]
        self.embeddings = STViTVideoEmbeddings(config)
        self.layers = global_layers(config, setting, VivitLayer)
        self.pooling = SemanticPooling(size, setting.token_grid, setting.pooling, setting.center_offset)
        self.global_centers = GlobalCenters(count, size) if setting.global_centers else None
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """Videos (B, frames, channels, height, width) to S semantic tokens for each of T slices.

        `last_hidden_state` (B, T * S, C) holds them after the final LayerNorm, slice by slice, and `pooler_output`
        (B, C) their mean. `hidden_states` and `attentions` have the tokens of their layer; those of generation layers
        come from slices, which are folded into the batch as B * T rows.

        Raises:
            ValueError: on another number of frames or image size, or an argument that the model cannot use.
        """
        refuse_masks(self, kwargs)
        if kwargs.pop("interpolate_pos_encoding", None):
            raise ValueError(
                f"interpolate_pos_encoding=True is not valid for {type(self).__name__}: resize the video to "
                f"image_size={self.config.image_size} of the configuration."
            )
        states = self.embeddings(pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype))
        base, end = self.setting.base_layers, self.setting.base_layers + self.setting.generation_layers
        for layer in self.layers[:base]:
            states = layer(states, **kwargs)
        slices, *grid = tubelet_map(self.config)
        states = states.unflatten(1, (slices, -1)).flatten(0, 1)
        tokens = self.pooling(states.unflatten(1, grid))
        tokens = generate(self.layers[base:end], tokens, states, self.global_centers, self.setting, **kwargs)
        tokens = tokens.unflatten(0, (-1, slices)).flatten(1, 2)
        for layer in self.layers[end:]:
            tokens = layer(tokens, **kwargs)
        tokens = self.layernorm(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(1))


class TokAccelSTViTForVideoClassification(STViTVideoPreTrainedModel):
    """A linear classifier of the mean semantic token of all slices. Experimental."""

    def __init__(self, config: TokAccelSTViTVideoConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vivit = TokAccelSTViTVideoModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """Logits (B, labels) of videos (B, frames, channels, height, width), and the loss for labels (B,)."""
        output = self.vivit(pixel_values, **kwargs)
        logits = self.classifier(output.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


def _adapt(values: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    slices, height, width = tubelet_map(model.config)
    return patch_parameters(values, slices * height * width)


register_semantic_family(
    "vivit",
    SemanticFamily(
        TokAccelSTViTVideoConfig,
        {VivitModel: TokAccelSTViTVideoModel, VivitForVideoClassification: TokAccelSTViTForVideoClassification},
        _adapt,
    ),
)
