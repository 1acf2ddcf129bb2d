"""STViT on ViT and DeiT: after a few layers the image is a handful of semantic tokens (section 3.2 of the paper)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer, ViTPatchEmbeddings, ViTPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..semantic.layers import SemanticAttention, SemanticLayer, branch_dropout
from ..semantic.modeling import SemanticConfig, SemanticFamily, SemanticModel, register_semantic_family
from ..semantic.pooling import GlobalCenters, SemanticPooling, check_token_grid
from ..settings.semantic import SemanticTokenConfig
from ..upstream import capture_outputs


class TokAccelSTViTConfig(SemanticConfig, ViTConfig):
    """`ViTConfig`, also for DeiT, with `accel`.

    Args:
        drop_path_rate: probability that training skips a branch of the last layer; it rises linearly from 0 in the
            first one.
    """

    model_type = "tokaccel_stvit"

    drop_path_rate: float | int = 0.0

    def fit_accel(self, setting: SemanticTokenConfig) -> SemanticTokenConfig:
        """Fills 4 x 4 tokens, a third of the depth as base layers, weighted pooling, global centres, no LayerScale.

        Raises:
            ValueError: when tokens or layers do not fit this model, or the setting is one of Swin's.
        """
        return fit_global(setting, self.num_hidden_layers, token_map(self))


def fit_global(setting: SemanticTokenConfig, depth: int, size: tuple[int, int]) -> SemanticTokenConfig:
    """The setting with what a transformer of `depth` layers on maps of `size` tokens (H, W) leaves to its family.

    Raises:
        ValueError: when it does not fit.
    """
    setting.check_only(
        "models of the ViT family",
        recover=False,
        key_window=None,
        stem=None,
        merging=None,
        relative_position_bias=False,
        conv_position=False,
    )
    setting = setting.fill(
        token_grid=(4, 4),
        base_layers=max(1, depth // 3),
        pooling="weighted",
        global_centers=setting.generation_layers > 1,
        layer_scale_init_value=0.0,
    )
    setting.check_depth(depth)
    check_token_grid(setting.token_grid, size, setting.pooling)
    return setting


def token_map(config: PreTrainedConfig, image_size: Any = None) -> tuple[int, int]:
    """(H, W) image tokens of images (height, width), by default of the configuration's size."""
    height, width = _pair(config.image_size if image_size is None else image_size)
    patch = _pair(config.patch_size)
    return height // patch[0], width // patch[1]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class STViTEmbeddings(nn.Module):
    """Patches with their positions; there is no class token."""

    def __init__(self, config: TokAccelSTViTConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = token_map(config)
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None) -> Tensor:
        """Tokens (B, H * W, C) of images (B, channels, height, width).

        Raises:
            ValueError: on an image size other than the configuration's without `interpolate_pos_encoding`, or one
                that patches do not fill.
        """
        size = tuple(pixel_values.shape[-2:])
        expected, patch = _pair(self.config.image_size), _pair(self.config.patch_size)
        if size != expected and not interpolate_pos_encoding:
            raise ValueError(
                f"Input image size {size} is not valid: this model was built for {expected}. Resize the image, or "
                "call the model with interpolate_pos_encoding=True."
            )
        if size != expected and (size[0] % patch[0] or size[1] % patch[1]):
            example = tuple(max(side // part, 1) * part for side, part in zip(size, patch, strict=True))
            raise ValueError(
                f"Input image size {size} is not valid: height and width must be multiples of the patch size {patch}, "
                f"for example {example}."
            )
        states = self.patch_embeddings(pixel_values) + self._positions(token_map(self.config, size))
        return self.dropout(states)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.position_embeddings
        maps = self.position_embeddings.unflatten(1, self.grid).permute(0, 3, 1, 2)
        maps = nn.functional.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
        return maps.flatten(2).transpose(1, 2)


class STViTPreTrainedModel(SemanticModel, ViTPreTrainedModel):
    config: TokAccelSTViTConfig
    _no_split_modules = ["STViTEmbeddings", "ViTLayer", "SemanticLayer"]
    _can_record_outputs = {
        "hidden_states": [ViTLayer, SemanticLayer],
        "attentions": [ViTAttention, SemanticAttention],
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, STViTEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)


class TokAccelSTViTModel(STViTPreTrainedModel):
    """Base layers on all tokens, generation layers that make semantic tokens, and semantic layers on these alone."""

    def __init__(self, config: TokAccelSTViTConfig) -> None:
        super().__init__(config)
        # Kept, since torch.compile cannot trace how it is read from the configuration, where it stands once built.
        self.setting = setting = config.accel_view()
        size, count = config.hidden_size, setting.token_grid[0] * setting.token_grid[1]
        self.embeddings = STViTEmbeddings(config)
        self.layers = global_layers(config, setting, ViTLayer)
        self.pooling = SemanticPooling(size, setting.token_grid, setting.pooling, setting.center_offset)
        self.global_centers = GlobalCenters(count, size) if setting.global_centers else None
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
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
        refuse_masks(self, kwargs)
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        states = self.embeddings(pixel_values, interpolate_pos_encoding)
        setting = self.setting
        grid = token_map(self.config, pixel_values.shape[-2:])
        if grid != self.embeddings.grid:
            check_token_grid(setting.token_grid, grid, setting.pooling)
        base, generation = setting.base_layers, setting.generation_layers
        for layer in self.layers[:base]:
            states = layer(states, **kwargs)
        tokens = self.pooling(states.unflatten(1, grid))
        tokens = generate(
            self.layers[base : base + generation], tokens, states, self.global_centers, setting, **kwargs
        )
        for layer in self.layers[base + generation :]:
            tokens = layer(tokens, **kwargs)
        tokens = self.layernorm(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(1))


def global_layers(
    config: PreTrainedConfig, setting: SemanticTokenConfig, layer_class: type[nn.Module]
) -> nn.ModuleList:
    """The host's own layers up to the base depth, then semantic ones, all under the host's names."""
    rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
    layers = nn.ModuleList(layer_class(config) for _ in rates[: setting.base_layers])
    for layer, rate in zip(layers, rates, strict=False):
        layer.dropout = branch_dropout(config.hidden_dropout_prob, rate)
    for rate in rates[setting.base_layers :]:
        layer = SemanticLayer(
            config,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            eps=config.layer_norm_eps,
            layer_scale=setting.layer_scale_init_value,
            drop_path=rate,
        )
        layers.append(layer)
    return layers


def generate(
    layers: nn.ModuleList,
    tokens: Tensor,
    states: Tensor,
    global_centers: nn.Module | None,
    setting: SemanticTokenConfig,
    **kwargs: Any,
) -> Tensor:
    """Semantic tokens (B, S, C) from their first centres and the image tokens (B, N, C), which stay as they are."""
    tokens = layers[0](tokens, states, shortcut=setting.generation_shortcut, **kwargs)
    for index, layer in enumerate(layers[1:]):
        queries = tokens if index or global_centers is None else global_centers(tokens)
        tokens = layer(queries, states, tokens, **kwargs)
    return tokens


def refuse_masks(model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raises ValueError on the host's arguments that have no meaning here; attention would swallow them."""
    for name in ("attention_mask", "bool_masked_pos"):
        if kwargs.pop(name, None) is not None:
            raise ValueError(
                f"{name} is not valid for {type(model).__name__}, whose semantic tokens are pooled from all tokens: "
                "leave it out."
            )


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
        output = self.vit(pixel_values, interpolate_pos_encoding, **kwargs)
        logits = self.classifier(output.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


def patch_parameters(values: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    """A host's parameters without its tokens that are no patches and their positions, which come first."""
    tokens = ("cls_token", "distillation_token", "mask_token")
    kept = {name: value for name, value in values.items() if name.rpartition(".")[2] not in tokens}
    for name, value in kept.items():
        if name.endswith("embeddings.position_embeddings"):
            kept[name] = value[:, -patches:]
    return kept


def _adapt(values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """ViT's or DeiT's parameters under our names."""
    height, width = token_map(model.config)
    names = {"deit.": "vit.", "cls_classifier.": "classifier."}
    adapted = {}
    for name, value in patch_parameters(values, height * width).items():
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
