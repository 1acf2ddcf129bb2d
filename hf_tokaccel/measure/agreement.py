"""What a task reads of an output, and how far that agrees with what it reads of the dense model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import UserError
from .metrics import panoptic, segmentation

# What `Agreement` says of each kind of reading.
NAMES = {
    "depth": "1 - relative depth error",
    "classes": "mIoU with the dense prediction",
    "segments": "PQ against the dense segments",
    "masks": "mask IoU with the dense masks",
    "labels": "same class as dense",
    "features": "cosine of features",
}
SCORE = 0.5  # from which a query is a segment; the default of Transformers
_FEATURES = ("last_hidden_state", "pooler_output", "image_embeds")


@dataclass(frozen=True)
class Reading:
    """What a task reads of the output for a batch.

    Attributes:
        kind: a key of `NAMES`.
        value: depth (B, h, w); classes (B, h, w), the most likely of each pixel; maps of segments (B, h, w); masks
            (B, P, h, w); labels (B,) of each image; or features (B, ..., C). Floating point in float32.
        num_classes: of classes and segments.
    """

    kind: str
    value: Tensor
    num_classes: int = 0


def read_output(output: Any) -> Reading:
    """What a task reads of a model's output: of queries segments, of SAM masks, else as `read_pixels`.

    Raises:
        ValueError: nothing that is known how to be compared.
    """
    get = _getter(output)
    if (masks := get("masks_queries_logits")) is not None:
        classes = get("class_queries_logits").float()
        return Reading("segments", _segments(classes, masks.float()), classes.shape[-1] - 1)
    if (masks := get("pred_masks")) is not None and masks.ndim == 5:
        return Reading("masks", (masks > 0).flatten(1, 2))
    return read_pixels(output)


def read_pixels(output: Any) -> Reading:
    """The same where every pixel, token or image counts alike: of queries the most likely class of each pixel.

    Raises:
        ValueError: nothing that is known how to be compared in this way, such as masks.
    """
    get = _getter(output)
    if (depth := get("predicted_depth")) is not None:
        return Reading("depth", depth.float())
    if (masks := get("masks_queries_logits")) is not None:
        classes = get("class_queries_logits").float().softmax(-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks.float().sigmoid())
        return Reading("classes", scores.argmax(1), classes.shape[-1])
    if (logits := get("logits")) is not None:
        if logits.ndim == 4:
            return Reading("classes", logits.argmax(1), logits.shape[1])
        return Reading("labels", logits.argmax(1)) if logits.ndim == 2 else Reading("features", logits.float())
    for name in _FEATURES:
        if (features := get(name)) is not None:
            # SAM's are maps.
            return Reading("features", (features.movedim(1, -1) if features.ndim == 4 else features).float())
    if maps := get("feature_maps"):
        return Reading("features", maps[-1].movedim(1, -1).float())
    raise UserError(f"{type(output).__name__} holds nothing that the benchmark knows how to compare")


def _getter(output: Any) -> Callable[[str], Any]:
    return output.get if hasattr(output, "get") else lambda name: None


def _segments(classes: Tensor, masks: Tensor) -> Tensor:
    """Panoptic maps (B, h, w) of queries, each of which is a segment of its own; MaskFormer's inference."""
    scores, labels = classes.softmax(-1)[..., :-1].max(-1)
    best = classes.argmax(-1)
    there = (scores > SCORE) & (best < classes.shape[-1] - 1)
    weighted = masks.sigmoid() * torch.where(there, scores, torch.zeros_like(scores))[..., None, None]
    query = weighted.argmax(1)
    codes = labels * panoptic.STEP + 1 + torch.arange(labels.shape[1], device=labels.device)
    maps = codes.gather(1, query.flatten(1)).view_as(query)
    inside = masks.gather(1, query[:, None])[:, 0] > 0
    return torch.where(inside & there.any(1)[:, None, None], maps, panoptic.VOID)


def mean_agreement(output: Reading, dense: Reading) -> dict[str, float]:
    """Means over pixels or tokens of all images, of what `read_pixels` gave.

    Maps of another size, from a lower resolution, are resized to the dense model's: as the task would.

    Returns:
        `relative_error` of depth, |d - d'| / |d'|, as a ratio of means; `same_class`, share of pixels or images;
        `cosine` of features, nothing where features of a lower resolution have no places.
    """
    value, reference = _resized(output.value, dense), dense.value
    if dense.kind == "depth":
        return {"relative_error": ((value - reference).abs().mean() / reference.abs().mean()).item()}
    if dense.kind in ("classes", "labels"):
        return {"same_class": (value == reference).float().mean().item()}
    if value.shape != reference.shape:
        return {}  # tokens of a lower resolution: which of them is where, only the model knows
    return {"cosine": F.cosine_similarity(value, reference, dim=-1).mean().item()}


class Agreement:
    """One number that the task would care about, of `read_output`; batches add up.

    `value` is 1 where everything is as in the dense model, and lower else; `NAMES` says what it is.
    """

    def __init__(self) -> None:
        self._sums: Tensor | float = 0.0
        self._images = 0
        self._finish: Callable[[Tensor], float] | None = None

    def add(self, output: Reading, dense: Reading) -> None:
        value = _resized(output.value, dense)
        self._images += len(dense.value)
        if dense.kind in ("classes", "segments"):
            module = segmentation if dense.kind == "classes" else panoptic
            pairs = zip(value, dense.value, strict=True)
            self._sums = self._sums + sum(module.image_sums(a, b, dense.num_classes) for a, b in pairs)
            self._finish = _miou if dense.kind == "classes" else _pq
        elif dense.kind == "masks":
            shared = (value & dense.value).sum((-2, -1)).double()
            union = (value | dense.value).sum((-2, -1)).double()
            # Two empty masks agree.
            self._sums += torch.where(union > 0, shared / union.clamp(min=1), 1.0).mean(-1).sum().item()
        else:
            (number,) = mean_agreement(output, dense).values()
            if not math.isfinite(number):
                raise UserError(
                    f"the {dense.kind} of the dense model or of a setting is 0 everywhere or not finite, so there is "
                    "nothing to agree with: give images and weights that belong together, in float32 if in doubt."
                )
            self._sums += len(dense.value) * (1 - number if dense.kind == "depth" else number)

    @property
    def value(self) -> float:
        if self._finish is not None:
            return self._finish(self._sums)
        return self._sums / self._images


def _miou(sums: Tensor) -> float:
    return segmentation.metrics_from_counts(sums)["miou"].item()


def _pq(sums: Tensor) -> float:
    quality = panoptic.metrics_from_sums(sums, [True] * ((len(sums) - 1) // 4))["pq"]
    return 1.0 if quality.isnan() else quality.item()  # no segment in either


def _resized(value: Tensor, dense: Reading) -> Tensor:
    """At the size of the dense reading, where that is a map: that of a lower resolution is smaller."""
    reference = dense.value
    if value.shape == reference.shape or dense.kind == "labels":
        return value
    if dense.kind == "depth":
        return _interpolate(value, reference.shape[-2:], "bilinear")
    if dense.kind == "features":
        if value.ndim != 4:
            return value
        return _interpolate(value.movedim(-1, 1), reference.shape[1:3], "bilinear").movedim(1, -1)
    return _interpolate(value.double(), reference.shape[-2:], "nearest").to(value.dtype)


def _interpolate(maps: Tensor, size: torch.Size, how: str) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    options = {} if how == "nearest" else {"align_corners": False}
    resized = F.interpolate(maps[:, None] if maps.ndim == 3 else maps, size, mode=how, **options)
    return resized.reshape(*maps.shape[:-2], *size)
