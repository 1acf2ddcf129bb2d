"""Segmenter as a Transformers model; its blocks are Transformers' ViT blocks."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerImageProcessor, ViTConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer, ViTPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ...checks import UserError, as_pair
from ...hub.shim import ShimMixin
from ...upstream import capture_outputs
from .configuration import SegmenterConfig


def token_grid(pixel_values: Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) patch tokens of images (B, C, height, width).

    Raises:
        ValueError: when a side is not a multiple of the patch.
    """
    # Constants even where torch.compile made the image size symbolic: each size gets a graph of its own.
    sides = tuple(operator.index(side) for side in pixel_values.shape[-2:])
    if any(side < step or side % step for side, step in zip(sides, patch_size, strict=True)):
        nearest = tuple(max(1, round(side / step)) * step for side, step in zip(sides, patch_size, strict=True))
        raise UserError(
            f"image size {sides} is not valid: height and width must be multiples of the patch size {patch_size}, "
            f"for example {nearest}. Resize the image, or pad it and crop what comes out."
        )
    return tuple(side // step for side, step in zip(sides, patch_size, strict=True))


class SegmenterEmbeddings(ViTEmbeddings):
    """Images (B, C, height, width) to tokens (B, prefix + N, hidden_size); positions follow the image's size."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.num_prefix_tokens = config.num_prefix_tokens
        self.distillation_token = None
        if config.distilled:
            count = config.num_prefix_tokens + self.patch_embeddings.num_patches
            self.distillation_token = nn.Parameter(torch.randn(1, 1, config.hidden_size))
            self.position_embeddings = nn.Parameter(torch.randn(1, count, config.hidden_size))

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None) -> Tensor:
        grid = token_grid(pixel_values, as_pair(self.patch_embeddings.patch_size))
        patches = self.patch_embeddings(pixel_values)
        prefix = [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]
        tokens = torch.cat((*(token.expand(len(patches), -1, -1) for token in prefix), patches), dim=1)
        return self.dropout(tokens + self._positions(grid, interpolate_pos_encoding))

    def _positions(self, grid: tuple[int, int], interpolate: bool | None) -> Tensor:
        """Bilinear, as the original; it also resizes where another grid happens to have as many tokens."""
        steps = as_pair(self.patch_embeddings.patch_size)
        trained = tuple(side // step for side, step in zip(as_pair(self.image_size), steps, strict=True))
        if grid == trained:
            return self.position_embeddings
        if interpolate is False:
            raise UserError(
                f"interpolate_pos_encoding=False is not valid for images of {grid} tokens: the position embeddings "
                f"are for {trained}. Pass None or True, or images of {tuple(self.image_size)} pixels."
            )
        prefix, patches = self.position_embeddings.split(
            (self.num_prefix_tokens, self.patch_embeddings.num_patches), dim=1
        )
        patches = F.interpolate(patches.transpose(1, 2).unflatten(2, trained), size=grid, mode="bilinear")
        return torch.cat((prefix, patches.flatten(2).transpose(1, 2)), dim=1)


class SegmenterDecoderLayer(ViTLayer):
    """A ViT block of the decoder's size."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(
            ViTConfig(
                hidden_size=config.decoder_hidden_size,
                num_attention_heads=config.decoder_num_attention_heads,
                intermediate_size=config.decoder_intermediate_size,
                hidden_act=config.hidden_act,
                hidden_dropout_prob=config.decoder_dropout_prob,
                attention_probs_dropout_prob=config.decoder_dropout_prob,
                layer_norm_eps=config.decoder_layer_norm_eps,
            )
        )
        # From here on they read the attention implementation, which is chosen for the model as a whole.
        self.attention.config = config
        self.mlp.config = config


class SegmenterMaskDecoder(nn.Module):
    """Mask transformer (section 3.2 of the paper): tokens (B, N, hidden_size) to class logits (B, N, num_labels).

    Tokens and one learned embedding per class pass blocks together; a logit is their cosine, normalised over classes.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        size, eps = config.decoder_hidden_size, config.decoder_layer_norm_eps
        self.projection = nn.Linear(config.hidden_size, size)
        self.class_embeddings = nn.Parameter(torch.randn(1, config.num_labels, size))
        self.layers = nn.ModuleList(SegmenterDecoderLayer(config) for _ in range(config.decoder_num_hidden_layers))
        self.layernorm = nn.LayerNorm(size, eps=eps)
        self.patch_projection = nn.Linear(size, size, bias=False)
        self.class_projection = nn.Linear(size, size, bias=False)
        self.mask_layernorm = nn.LayerNorm(config.num_labels, eps=eps)

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        return self.compare(*self.transform(self.projection(tokens), **kwargs))

    def transform(self, patches: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Projected tokens (B, N, size) and the class embeddings (B, num_labels, size) after the blocks.

        Keywords go to the blocks.
        """
        count = patches.shape[1]
        states = torch.cat((patches, self.class_embeddings.expand(len(patches), -1, -1)), dim=1)
        for layer in self.layers:
            states = layer(states, **kwargs)
        return states[:, :count], states[:, count:]

    def compare(self, patches: Tensor, classes: Tensor) -> Tensor:
        """Logits (B, N, num_labels) of what `transform` gives."""
        patches = F.normalize(self.patch_projection(self.layernorm(patches)), dim=-1)
        classes = F.normalize(self.class_projection(self.layernorm(classes)), dim=-1)
        return self.mask_layernorm(patches @ classes.transpose(1, 2))


class SegmenterPreTrainedModel(ShimMixin, ViTPreTrainedModel):
    config: SegmenterConfig
    base_model_prefix = "segmenter"
    _no_split_modules = ["SegmenterEmbeddings", "ViTLayer", "SegmenterMaskDecoder"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        spread = self.config.initializer_range
        if isinstance(module, SegmenterEmbeddings) and module.distillation_token is not None:
            init.trunc_normal_(module.distillation_token, std=spread)
        if isinstance(module, SegmenterMaskDecoder):
            init.trunc_normal_(module.class_embeddings, std=spread)
            for projection in (module.patch_projection, module.class_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5)


class SegmenterModel(SegmenterPreTrainedModel):
    """The encoder: images (B, C, height, width) to tokens (B, prefix + N, hidden_size) after the last LayerNorm."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.embeddings = SegmenterEmbeddings(config)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Height and width may be any multiples of the patch: position embeddings are resized.

        Raises:
            ValueError: when a side is not a multiple of the patch, or `interpolate_pos_encoding=False` forbids to
                resize.
        """
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            states = layer(states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(states))


class SegmenterForSemanticSegmentation(SegmenterPreTrainedModel):
    """Segmenter; `decode_head` maps tokens (B, N, hidden_size) to logits (B, N, num_labels)."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.segmenter = SegmenterModel(config)
        linear = config.decoder_type == "linear"
        self.decode_head = nn.Linear(config.hidden_size, config.num_labels) if linear else SegmenterMaskDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Logits (B, num_labels, height / patch, width / patch); processors resize them to the image.

        An image that is no multiple of the patch is refused rather than zero-padded as in the original: logits on the
        token grid cannot tell how much of them is padding, and whoever resizes them to the image would be off.

        Args:
            pixel_values: images (B, C, height, width).
            labels: classes (B, h, w) of any size, to which the loss resizes the logits.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`.

        Raises:
            ValueError: when a side is not a multiple of the patch.
        """
        outputs = self.segmenter(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        patches = outputs.last_hidden_state[:, self.config.num_prefix_tokens :]
        grid = token_grid(pixel_values, as_pair(self.config.patch_size))
        logits = self.classify(patches, **kwargs).transpose(1, 2).unflatten(2, grid).contiguous()
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def classify(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """Logits (B, N, num_labels) of the encoder's patch tokens; keywords are those of `forward`."""
        return self.decode_head(tokens)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        ignored = self.config.semantic_loss_ignore_index
        if self.config.num_labels > 1:
            return F.cross_entropy(logits, labels, ignore_index=ignored)
        counted = labels != ignored
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
        return (loss * counted).sum() / counted.sum().clamp(min=1)


def segmenter_image_processor(config: SegmenterConfig, **kwargs: Any) -> SegformerImageProcessor:
    """An image processor for a model: resizes to `config.image_size`, mean and std 127.5 of 255 as in the original.

    Args:
        config: the model's configuration.
        kwargs: further fields of the processor, for example `do_reduce_labels=True` for ADE20K's label images.
    """
    height, width = as_pair(config.image_size)
    half = [0.5, 0.5, 0.5]
    fields = {"size": {"height": height, "width": width}, "image_mean": half, "image_std": half, **kwargs}
    return SegformerImageProcessor(**fields)
