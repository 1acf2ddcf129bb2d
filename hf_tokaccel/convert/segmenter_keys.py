"""Parameter names of the original Segmenter (rstrudel/segmenter) and of the Expedit port, in terms of ours."""

import re
from collections.abc import Mapping

from torch import Tensor

# Expedit's to the original's, where they differ.
_FROM_EXPEDIT = (
    (r"^backbone\.ln1\.", "encoder.norm."),
    (r"^backbone\.patch_embed\.projection\.", "encoder.patch_embed.proj."),
    (r"^backbone\.layers\.(\d+)\.ln([12])\.", r"encoder.blocks.\1.norm\2."),
    (r"^backbone\.layers\.(\d+)\.attn\.attn\.in_proj_", r"encoder.blocks.\1.attn.qkv."),
    (r"^backbone\.layers\.(\d+)\.attn\.attn\.out_proj\.", r"encoder.blocks.\1.attn.proj."),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"encoder.blocks.\1.mlp.fc1."),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.1\.", r"encoder.blocks.\1.mlp.fc2."),
    (r"^backbone\.", "encoder."),
    (r"^decode_head\.", "decoder."),
)
_TO_OURS = (
    (r"^encoder\.cls_token$", "segmenter.embeddings.cls_token"),
    (r"^encoder\.dist_token$", "segmenter.embeddings.distillation_token"),
    (r"^encoder\.pos_embed$", "segmenter.embeddings.position_embeddings"),
    (r"^encoder\.patch_embed\.proj\.", "segmenter.embeddings.patch_embeddings.projection."),
    (r"^encoder\.norm\.", "segmenter.layernorm."),
    (r"^encoder\.blocks\.", "segmenter.layers."),
    (r"^decoder\.blocks\.", "decode_head.layers."),
    (r"^decoder\.proj_dec\.", "decode_head.projection."),
    (r"^decoder\.cls_emb$", "decode_head.class_embeddings"),
    (r"^decoder\.decoder_norm\.", "decode_head.layernorm."),
    (r"^decoder\.proj_patch$", "decode_head.patch_projection.weight"),
    (r"^decoder\.proj_classes$", "decode_head.class_projection.weight"),
    (r"^decoder\.mask_norm\.", "decode_head.mask_layernorm."),
    (r"^decoder\.head\.", "decode_head."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)
# The classifier of the pre-trained ViT, which Segmenter never calls.
_UNUSED = re.compile(r"^encoder\.(head|head_dist)\.")


def is_expedit(state: Mapping[str, Tensor]) -> bool:
    """Whether parameters have the names of the Expedit port."""
    return any(name.removeprefix("module.").startswith("backbone.") for name in state)


def to_original_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strips the prefix of DistributedDataParallel and turns the Expedit port's names into the original's."""
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {_replace(name, _FROM_EXPEDIT): value for name, value in state.items()}


def to_our_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters under the names of `SegmenterForSemanticSegmentation`, and the names that it has no use for.

    Args:
        state: parameters under the original's names; fused query, key and value (3C, ...) are split.
    """
    ours, unused = {}, []
    for name, value in state.items():
        if _UNUSED.match(name):
            unused.append(name)
            continue
        new = _replace(name, _TO_OURS)
        if ".attn.qkv." in new and value.ndim and value.shape[0] % 3 == 0:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                ours[new.replace(".attn.qkv.", f".attention.{part}_proj.")] = piece.clone()
        else:
            # Stored for patches @ matrix; a linear layer multiplies by the transpose.
            transposed = name in ("decoder.proj_patch", "decoder.proj_classes")
            ours[new] = value.mT.contiguous() if transposed and value.ndim == 2 else value
    return ours, unused


def _replace(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
