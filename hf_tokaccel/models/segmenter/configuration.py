"""Configuration of Segmenter."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...checks import UserError

DECODERS = ("mask_transformer", "linear")


@strict
class SegmenterConfig(PreTrainedConfig):
    """Segmenter (Strudel et al., ICCV 2021): a ViT encoder, and a mask transformer or a linear layer as decoder.

    Args:
        layer_norm_eps: of the encoder; 1e-5 as in the original, the Expedit port has 1e-6.
        image_size: side or (height, width) in pixels that the position embeddings are for; others are resized to.
        distilled: whether a distillation token follows the class token (DeiT backbones).
        decoder_type: `"mask_transformer"` or `"linear"`; the other decoder fields are the mask transformer's.
        decoder_hidden_size: None takes the encoder's.
        decoder_num_attention_heads: None takes one per 64 channels.
        decoder_intermediate_size: None takes four times `decoder_hidden_size`.
        decoder_dropout_prob: on attention weights and on what each half of a decoder block adds.
        semantic_loss_ignore_index: label that the loss leaves out.
        inference_window_size: side in pixels of the crops that the checkpoint was evaluated on; None where unknown.
        inference_window_stride: step in pixels between those crops.

    Raises:
        ValueError: on an unknown `decoder_type`, and where heads do not divide channels.
    """

    model_type = "segmenter"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    image_size: int | list[int] | tuple[int, int] = 512
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    distilled: bool = False
    decoder_type: str = "mask_transformer"
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_intermediate_size: int | None = None
    decoder_dropout_prob: float | int = 0.1
    decoder_layer_norm_eps: float = 1e-5
    semantic_loss_ignore_index: int = 255
    inference_window_size: int | None = None
    inference_window_stride: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_type not in DECODERS:
            raise UserError(
                f"decoder_type={self.decoder_type!r} is not valid: it must be one of {', '.join(DECODERS)}, "
                "for example decoder_type='mask_transformer'."
            )
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = self.hidden_size
        if self.decoder_num_attention_heads is None:
            self.decoder_num_attention_heads = max(1, self.decoder_hidden_size // 64)
        if self.decoder_intermediate_size is None:
            self.decoder_intermediate_size = 4 * self.decoder_hidden_size
        for prefix in ("", "decoder_"):
            size, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if heads < 1 or size % heads:
                raise UserError(
                    f"{prefix}num_attention_heads={heads} is not valid: it must divide {prefix}hidden_size={size}, "
                    f"for example {prefix}num_attention_heads=1."
                )
        super().__post_init__(**kwargs)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return 2 if self.distilled else 1
