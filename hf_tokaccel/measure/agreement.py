"""How far an output is from the dense model's, in what the task reads of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FEATURES = ("last_hidden_state", "pooler_output", "image_embeds")


def reading(output: Any) -> tuple[str, Tensor]:
    """What a task reads of a model's output, and of what kind it is.

    Returns:
        `"depth"` (B, h, w), `"classes"` (B, h, w) most likely class of each pixel, `"labels"` (B,) of each image, or
        `"features"` (B, ..., C); floating point in float32.

    Raises:
        ValueError: the output holds none of these.
    """
    get = output.get if hasattr(output, "get") else lambda name: None
    if (depth := get("predicted_depth")) is not None:
        return "depth", depth.float()
    if (masks := get("masks_queries_logits")) is not None:
        classes = get("class_queries_logits").float().softmax(-1)[..., :-1]
        return "classes", torch.einsum("bqc,bqhw->bchw", classes, masks.float().sigmoid()).argmax(1)
    if (logits := get("logits")) is not None:
        if logits.ndim == 4:
            return "classes", logits.argmax(1)
        return ("labels", logits.argmax(1)) if logits.ndim == 2 else ("features", logits.float())
    for name in _FEATURES:
        if (features := get(name)) is not None:
            # SAM's are maps.
            return "features", (features.movedim(1, -1) if features.ndim == 4 else features).float()
    if maps := get("feature_maps"):
        return "features", maps[-1].movedim(1, -1).float()
    raise ValueError(f"{type(output).__name__} holds nothing that the benchmark knows how to compare")


def agreement(output: tuple[str, Tensor], dense: tuple[str, Tensor]) -> dict[str, float]:
    """Means over pixels or tokens of all images, of what `reading` gave.

    Maps of another size, from a lower resolution, are resized to the dense model's: as the task would.

    Returns:
        `relative_error` of depth, |d - d'| / |d'|, as a ratio of means; `same_class`, share of pixels or images;
        `cosine` of features.
    """
    (kind, value), (_, reference) = output, dense
    if kind == "depth":
        value = _resize(value, reference.shape[-2:], "bilinear")
        return {"relative_error": ((value - reference).abs().mean() / reference.abs().mean()).item()}
    if kind == "classes":
        value = _resize(value.float(), reference.shape[-2:], "nearest").long()
    if kind in ("classes", "labels"):
        return {"same_class": (value == reference).float().mean().item()}
    if value.shape != reference.shape:
        if value.ndim != 4:
            return {}  # tokens of a lower resolution: which of them is where, only the model knows
        value = _resize(value.movedim(-1, 1), reference.shape[1:3], "bilinear").movedim(1, -1)
    return {"cosine": F.cosine_similarity(value, reference, dim=-1).mean().item()}


def _resize(maps: Tensor, size: torch.Size, how: str) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    options = {} if how == "nearest" else {"align_corners": False}
    return F.interpolate(maps[:, None] if maps.ndim == 3 else maps, size, mode=how, **options).reshape(
        *maps.shape[:-2], *size
    )
