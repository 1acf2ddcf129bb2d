"""What STViT on plain transformers shares, of images and of videos: their semantic tokens are those of a whole map.

An image has one map, a video one for each slice of tubelets. Each map gets semantic tokens of its own, and the layers
after that run on those of all maps together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from ..checks import UserError
from ..settings.semantic import SemanticTokenConfig
from .layers import SemanticLayer, branch_dropout
from .modeling import SemanticConfig, SemanticModel
from .pooling import GlobalCenters, SemanticPooling, check_token_grid
from .windows import Size


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class GlobalConfig(SemanticConfig):
    """First base of the configurations; the second is the host's own class.

    Attributes:
        drop_path_rate: probability that training skips a branch of the last layer; it rises linearly from 0 in the
            first one.
    """

    drop_path_rate: float | int = 0.0

    @property
    def slices(self) -> int:
        """Maps T of an input."""
        return 1

    def token_map(self) -> Size:
        """(H, W) tokens of a map."""
        raise NotImplementedError

    def fit_accel(self, setting: SemanticTokenConfig) -> SemanticTokenConfig:
        """Fills 4 x 4 tokens, a third of the depth as base layers, weighted pooling, global centres, no LayerScale.

        Raises:
            ValueError: when tokens or layers do not fit this model, or the setting is one of Swin's.
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
        depth = self.num_hidden_layers
        setting = setting.fill(
            token_grid=(4, 4),
            base_layers=max(1, depth // 3),
            pooling="weighted",
            global_centers=setting.generation_layers > 1,
            layer_scale_init_value=0.0,
        )
        setting.check_depth(depth)
        check_token_grid(setting.token_grid, self.token_map(), setting.pooling)
        return setting


class PositionedPatches(nn.Module):
    """Patches with their positions; there is no class token."""

    def __init__(self, config: GlobalConfig, patch_embeddings: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.patch_embeddings = patch_embeddings
        self.position_embeddings = nn.Parameter(torch.zeros(1, patch_embeddings.num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def embed(self, pixel_values: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, N, C) of an input in any dtype, at positions (1, N, C)."""
        pixel_values = pixel_values.to(self.patch_embeddings.projection.weight.dtype)
        return self.dropout(self.patch_embeddings(pixel_values) + positions)


class GlobalModel(SemanticModel):
    """First base of the model classes: of transformers, which `build` and `run`, and of heads, which are `classified`.

    A transformer has base layers on all tokens, generation layers that make semantic tokens, and semantic layers on
    these alone.
    """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionedPatches):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)

    def build(self, embeddings: PositionedPatches, layer_class: type[nn.Module]) -> None:
        """Makes the parts of a transformer, under the host's names, whose own layer is that of the base layers."""
        config = self.config
        # Kept, since torch.compile cannot trace how it is read from the configuration, where it stands once built.
        self.setting = setting = config.accel_view()
        size, count = config.hidden_size, setting.token_grid[0] * setting.token_grid[1]
        self.embeddings = embeddings
        self.layers = _layers(config, setting, layer_class)
        self.pooling = SemanticPooling(size, setting.token_grid, setting.pooling, setting.center_offset)
        self.global_centers = GlobalCenters(count, size) if setting.global_centers else None
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def run(self, states: Tensor, grid: Size, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Semantic tokens (B, T * S, C) of T maps (H, W) from their tokens (B, T * H * W, C), and their mean (B, C).

        Raises:
            ValueError: on an argument of the host that has no meaning here.
        """
        self._refuse_masks(kwargs)
        slices, base = self.config.slices, self.setting.base_layers
        end = base + self.setting.generation_layers
        for layer in self.layers[:base]:
            states = layer(states, **kwargs)
        tokens = self._generate(self.layers[base:end], states.unflatten(1, (slices, -1)).flatten(0, 1), grid, **kwargs)
        tokens = tokens.unflatten(0, (-1, slices)).flatten(1, 2)
        for layer in self.layers[end:]:
            tokens = layer(tokens, **kwargs)
        tokens = self.layernorm(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(1))

    def _refuse_masks(self, kwargs: dict[str, Any]) -> None:
        """Raises ValueError on the host's arguments that have no meaning here; attention would swallow them."""
        for name in ("attention_mask", "bool_masked_pos"):
            if kwargs.pop(name, None) is not None:
                raise UserError(
                    f"{name} is not valid for {type(self).__name__}, whose semantic tokens are pooled from all "
                    "tokens: leave it out."
                )

    def _generate(self, layers: nn.ModuleList, states: Tensor, grid: Size, **kwargs: Any) -> Tensor:
        """Semantic tokens (B * T, S, C) of maps (H, W) of image tokens (B * T, H * W, C), which stay as they are."""
        tokens = self.pooling(states.unflatten(1, grid))
        tokens = layers[0](tokens, states, shortcut=self.setting.generation_shortcut, **kwargs)
        for index, layer in enumerate(layers[1:]):
            queries = tokens if index or self.global_centers is None else self.global_centers(tokens)
            tokens = layer(queries, states, tokens, **kwargs)
        return tokens

    def classified(
        self, output: BaseModelOutputWithPooling, labels: Tensor | None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """What a head returns: logits of the mean token by its `classifier`, and the loss where there are labels."""
        logits = self.classifier(output.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


def _layers(config: GlobalConfig, setting: SemanticTokenConfig, layer_class: type[nn.Module]) -> nn.ModuleList:
    """The host's own layers up to the base depth, then semantic ones."""
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


def patch_parameters(values: dict[str, Tensor], config: GlobalConfig) -> dict[str, Tensor]:
    """A host's parameters without its tokens that are no patches and their positions, which come first."""
    height, width = config.token_map()
    tokens = ("cls_token", "distillation_token", "mask_token")
    kept = {name: value for name, value in values.items() if name.rpartition(".")[2] not in tokens}
    for name, value in kept.items():
        if name.endswith("embeddings.position_embeddings"):
            kept[name] = value[:, -config.slices * height * width :]
    return kept
