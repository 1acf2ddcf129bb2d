"""Released STViT-R checkpoints (changsn/STViT-R and its detection backbone) to folders of Transformers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ..models.stvit_swin import (
    TokAccelSTViTSwinBackbone,
    TokAccelSTViTSwinConfig,
    TokAccelSTViTSwinForImageClassification,
)
from .base import Conversion, ConversionError, fill_model, read_checkpoint, some

_UNIT = 6  # layers of a unit, in every release
_SETTINGS = ("yacs.config.CfgNode",)  # the training's settings, stored beside the weights
_IGNORED = ("relative_position_index", "attn_mask")
_STEM = {"0.c": "0", "0.bn": "1", "2.c": "3", "2.bn": "4"}
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.q_proj",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TABLE = "attn.relative_position_bias_table"
_ALWAYS = ("patch_embed.proj.0.c.weight", "patch_embed.proj.2.c.weight", f"layers.2.blocks.0.{_TABLE}")


def convert(checkpoint: Path, *, shortcut: bool = False) -> Conversion:
    """Reads a checkpoint of a classifier (under "model") or the backbone of a detector's (under "state_dict").

    Args:
        checkpoint: the file.
        shortcut: whether a classifier was trained with the flag of this name, which its weights do not tell; the
            released ones were not.

    Raises:
        ConversionError: when it is no checkpoint of STViT-R on Swin.
    """
    state = read_checkpoint(checkpoint, ignored=_SETTINGS)
    notes = []
    if any(name.startswith("backbone.") for name in state):
        others = [name for name in state if not name.startswith("backbone.")]
        state = {name.removeprefix("backbone."): value for name, value in state.items() if name not in set(others)}
        if others:
            notes.append(f"left out {len(others)} parameters of the detector: {some(others)}")
    missing = [name for name in _ALWAYS if name not in state]
    if missing:
        raise ConversionError(
            f"{checkpoint} is not a checkpoint of STViT-R on Swin: it lacks {some(missing)} and has, for example, "
            f"{some(list(state))}."
        )
    is_classifier = "head.weight" in state
    if shortcut and not is_classifier:
        raise ConversionError(f"{checkpoint} is a detector's, which always has the shortcut: leave --shortcut out.")
    model = build_model(checkpoint, state, shortcut=shortcut)
    if is_classifier:
        notes.append("no class names in the checkpoint: LABEL_0, LABEL_1, ...")
        notes.append(
            f"taken to be trained {'with' if shortcut else 'without'} the flag 'shortcut'"
            + ("" if shortcut else ", as released; otherwise give --shortcut")
        )
    return Conversion(model, image_processor(model.config, resize=is_classifier), notes)


def build_model(checkpoint: Path, state: Mapping[str, Tensor], *, shortcut: bool = False) -> PreTrainedModel:
    """A classifier, or else a Backbone, with the weights of a checkpoint under their own names; in evaluation mode.

    Raises:
        ConversionError: when one is missing, unknown, or does not fit the others.
    """
    is_classifier = "head.weight" in state
    config = read_config(checkpoint, state, shortcut or not is_classifier)
    model = (TokAccelSTViTSwinForImageClassification if is_classifier else TokAccelSTViTSwinBackbone)(config)
    # BatchNorm counts steps of training; a Backbone has a last LayerNorm that is never used.
    optional = [name for name in model.state_dict() if re.search(r"num_batches_tracked$|^swin\.layernorm\.", name)]
    optional = [name for name in optional if not is_classifier or "layernorm" not in name]
    fill_model(model, to_our_names(state), f"{checkpoint} cannot be converted", "the rest of it tells", optional)
    return model.eval()


def image_processor(config: TokAccelSTViTSwinConfig, *, resize: bool) -> ViTImageProcessor:
    """Bicubic resizing to the image size of a classifier, and the mean and deviation of ImageNet."""
    side = config.image_size
    return ViTImageProcessor(
        do_resize=resize,
        size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=list(IMAGENET_DEFAULT_MEAN),
        image_std=list(IMAGENET_DEFAULT_STD),
    )


def read_config(checkpoint: Path, state: Mapping[str, Tensor], shortcut: bool) -> TokAccelSTViTSwinConfig:
    """What the shapes of a checkpoint's weights, under their own names, tell of the model.

    Raises:
        ConversionError: when they are not those of STViT-R on Swin.
    """
    places = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in state]
    blocks = {(int(place[1]), int(place[2])) for place in places if place}
    stages = 1 + max(stage for stage, _ in blocks)
    depths = [sum(stage == index for stage, _ in blocks) for index in range(stages)]
    expected = {(stage, block) for stage, depth in enumerate(depths) for block in range(depth)}
    plain = {block for stage, block in blocks if stage == 2 and f"layers.2.blocks.{block}.attn.qkv.weight" in state}
    if stages < 3 or blocks != expected or depths[2] % _UNIT or plain != set(range(0, depths[2], _UNIT)):
        raise ConversionError(
            f"{checkpoint} has stages of {depths} blocks, of which {sorted(plain)} in the third have attn.qkv: "
            f"STViT-R has units of {_UNIT} there, each of which starts with such a block, for example depths "
            "[2, 2, 18, 2]."
        )
    tables = [state.get(f"layers.{stage}.blocks.0.{_TABLE}") for stage in range(stages)]
    lacking = [f"layers.{stage}.blocks.0.{_TABLE}" for stage, table in enumerate(tables) if table is None]
    if lacking:
        raise ConversionError(f"{checkpoint} lacks {some(lacking)}, which tells the number of heads.")
    size, window = state["patch_embed.proj.2.c.weight"].shape[0], (round(tables[2].shape[0] ** 0.5) + 1) // 2
    setting: dict[str, Any] = {"recover": True, "stem": "conv", "generation_shortcut": shortcut}
    setting["conv_position"] = any(".conv_pos." in name for name in state)
    fields: dict[str, Any] = {}
    if "head.weight" in state:
        setting |= {
            "formulation": "classification",
            "global_centers": "layers.2.semantic_token2" in state,
            "relative_position_bias": f"layers.2.blocks.3.{_TABLE}" in state,
        }
        fields = {"num_labels": state["head.weight"].shape[0], "image_size": 32 * window}
    else:
        setting |= {"formulation": "detection", "pad_mask": "released"}
        fields["out_features"] = [f"stage{index + 1}" for index in range(stages) if f"norm{index}.weight" in state]
    hidden = state.get("layers.0.blocks.0.mlp.fc1.weight")
    return TokAccelSTViTSwinConfig(
        num_channels=state["patch_embed.proj.0.c.weight"].shape[1],
        embed_dim=size,
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=window,
        mlp_ratio=4.0 if hidden is None else hidden.shape[0] / size,
        accel={"method": "semantic_tokens", **setting},
        **fields,
    )


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under our names; buffers that follow from the sizes are dropped, unknown names kept."""
    ours = {}
    for name, value in state.items():
        if not name.endswith(_IGNORED):
            ours.update(_renamed(name, value))
    return ours


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    path, _, kind = name.rpartition(".")
    if path == "head":
        return {f"classifier.{kind}": value}
    if path == "norm":
        return {f"swin.layernorm.{kind}": value}
    if found := re.fullmatch(r"norm(\d)", path):
        return {f"hidden_states_norms.stage{int(found[1]) + 1}.{kind}": value}
    if path.startswith("patch_embed.proj.") and path[17:] in _STEM:
        return {f"swin.embeddings.patch_embeddings.projection.{_STEM[path[17:]]}.{kind}": value}
    if name == "layers.2.semantic_token2":
        return {"swin.encoder.layers.2.global_centers.weight": value}
    if re.fullmatch(r"layers\.\d\.downsample\.(norm|reduction)", path):
        return {f"swin.encoder.{name}": value}
    if found := re.fullmatch(r"layers\.(\d)\.blocks\.(\d+)\.(.+)", name):
        return _renamed_in_block(int(found[1]), int(found[2]), found[3], value)
    return {name: value}


def _renamed_in_block(stage: int, block: int, name: str, value: Tensor) -> dict[str, Tensor]:
    """One parameter of a block; projections that are stored as one are taken apart."""
    prefix = f"swin.encoder.layers.{stage}"
    path, _, kind = name.rpartition(".")
    joint = {"attn.qkv": "qkv", "attn.kv": "kv"}.get(path)
    if joint and value.shape[0] % len(joint) == 0:
        parts = zip(joint, value.chunk(len(joint)), strict=True)
        # Cloned, since files refuse tensors that share memory.
        return {f"{prefix}.blocks.{block}.attention.{part}_proj.{kind}": rows.clone() for part, rows in parts}
    if path == "conv_pos.proj.0":
        return {f"{prefix}.conv_position.{block // _UNIT}.{kind}": value}
    if name in ("layer_scale_1", "layer_scale_2"):
        return {f"{prefix}.blocks.{block}.{name}": value}
    if name == _TABLE:
        table = "relative_position_bias.relative_position_bias_table"
        return {f"{prefix}.blocks.{block}.attention.{table}": value}
    if path in _BLOCK:
        return {f"{prefix}.blocks.{block}.{_BLOCK[path]}.{kind}": value}
    return {f"layers.{stage}.blocks.{block}.{name}": value}
