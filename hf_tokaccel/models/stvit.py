"""STViT on ViT and DeiT: after a few layers the image is a handful of semantic tokens (section 3.2 of the paper)."""

from typing import Any

from torch import Tensor, nn
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer, ViTPatchEmbeddings, ViTPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..checks import UserError, as_pair
from ..semantic.global_tokens import GlobalConfig, GlobalModel, PositionedPatches, patch_parameters
from ..semantic.layers import SemanticAttention, SemanticLayer
from ..semantic.modeling import SemanticFamily, register_semantic_family
from ..semantic.pooling import check_token_grid
from ..upstream import capture_outputs


class TokAccelSTViTConfig(GlobalConfig, ViTConfig):
    """`ViTConfig`, also for DeiT, with `accel` and `drop_path_rate`."""

    model_type = "tokaccel_stvit"

    def token_map(self, image_size: Any = None) -> tuple[int, int]:
        """(H, W) tokens of images (height, width), by default of the configuration's size."""
        height, width = as_pair(self.image_size if image_size is None else image_size)
        patch = as_pair(self.patch_size)
        return height // patch[0], width // patch[1]


class STViTEmbeddings(PositionedPatches):
    """Patches of images with their positions."""

    def __init__(self, config: TokAccelSTViTConfig) -> None:
        super().__init__(config, ViTPatchEmbeddings(config))
        self.grid = config.token_map()

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None) -> Tensor:
        """Tokens (B, H * W, C) of images (B, channels, height, width).

        Raises:
            ValueError: on an image size other than the configuration's without `interpolate_pos_encoding`, or one
                that patches do not fill.
        """
        size = tuple(pixel_values.shape[-2:])
        expected, patch = as_pair(self.config.image_size), as_pair(self.config.patch_size)
        if size != expected and not interpolate_pos_encoding:
            raise UserError(
                f"Input image size {size} is not valid: this model was built for {expected}. Resize the image, or "
                "call the model with interpolate_pos_encoding=True."
            )
        if size != expected and (size[0] % patch[0] or size[1] % patch[1]):
            example = tuple(max(side // part, 1) * part for side, part in zip(size, patch, strict=True))
            raise UserError(
                f"Input image size {size} is not valid: height and width must be multiples of the patch size {patch}, "
                f"for example {example}."
            )
        return self.embed(pixel_values, self._positions(self.config.token_map(size)))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.position_embeddings
        maps = self.position_embeddings.unflatten(1, self.grid).permute(0, 3, 1, 2)
        maps = nn.functional.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
        return maps.flatten(2).transpose(1, 2)


class STViTPreTrainedModel(GlobalModel, ViTPreTrainedModel):
    config: TokAccelSTViTConfig
    _no_split_modules = ["STViTEmbeddings", "ViTLayer", "SemanticLayer"]
    _can_record_outputs = {
        "hidden_states": [ViTLayer, SemanticLayer],
        "attentions": [ViTAttention, SemanticAttention],
    }


class TokAccelSTViTModel(STViTPreTrainedModel):
    """Base layers on all tokens, generation layers that make semantic tokens, and semantic layers on these alone."""

    def __init__(self, config: TokAccelSTViTConfig) -> None:
        super().__init__(config)
        self.build(STViTEmbeddings(config), ViTLayer)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Images (B, channels, height, width) to S semantic tokens each.

        `last_hidden_state` (B, S, C) holds them after the final LayerNorm, row by row of the token grid, and
        `pooler_output` (B, C) their mean. `hidden_states` have as many tokens as their layer: all of the image up to
        the last base layer, S after that. `attentions` of generation layers are (B, heads, S, H * W) in the first,
        with S more keys ahead of the image's in the others.

        Raises:
            ValueError: on an image size or an argument that the model cannot use.
        """
        states = self.embeddings(pixel_values, interpolate_pos_encoding)
        grid = self.config.token_map(pixel_values.shape[-2:])
        if grid != self.embeddings.grid:
            check_token_grid(self.setting.token_grid, grid, self.setting.pooling)
        return self.run(states, grid, **kwargs)


class TokAccelSTViTForImageClassification(STViTPreTrainedModel):
    """A linear classifier of the mean semantic token."""

    def __init__(self, config: TokAccelSTViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = TokAccelSTViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Logits (B, labels) of images (B, channels, height, width), and the loss for labels (B,); see the model."""
        return self.classified(self.vit(pixel_values, interpolate_pos_encoding, **kwargs), labels, **kwargs)


def _adapt(values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """ViT's or DeiT's parameters under our names."""
    names = {"deit.": "vit.", "cls_classifier.": "classifier."}
    adapted = {}
    for name, value in patch_parameters(values, model.config).items():
        prefix = next((old for old in names if name.startswith(old)), "")
        adapted[names.get(prefix, "") + name.removeprefix(prefix)] = value
    return adapted


_CLASSIFIER = TokAccelSTViTForImageClassification
register_semantic_family(
    "deit",
    SemanticFamily(
        TokAccelSTViTConfig,
        {
            DeiTModel: TokAccelSTViTModel,
            DeiTForImageClassification: _CLASSIFIER,
            DeiTForImageClassificationWithTeacher: _CLASSIFIER,
        },
        _adapt,
    ),
)
# The image processor of this one is the default.
register_semantic_family(
    "vit",
    SemanticFamily(
        TokAccelSTViTConfig, {ViTModel: TokAccelSTViTModel, ViTForImageClassification: _CLASSIFIER}, _adapt
    ),
)
