"""How well an output agrees with the dense model's, as one number that the task would care about."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .agreement import agreement as mean_agreement
from .agreement import reading
from .metrics import panoptic, segmentation

NAMES = {
    "depth": "1 - relative depth error",
    "classes": "mIoU with the dense prediction",
    "segments": "PQ against the dense segments",
    "masks": "mask IoU with the dense masks",
    "labels": "same class as dense",
    "features": "cosine of features",
}
SCORE = 0.5  # from which a query is a segment; the default of Transformers


@dataclass
class Reading:
    """What a task reads of the output for a batch.

    Attributes:
        kind: a key of `NAMES`.
        value: depth (B, h, w); classes (B, h, w); maps of segments (B, h, w); masks (B, P, h, w); labels (B,); or
            features (B, ..., C).
        num_classes: of classes and segments.
    """

    kind: str
    value: Tensor
    num_classes: int = 0


def read_output(output: Any) -> Reading:
    """What a task reads of a model's output.

    Raises:
        ValueError: nothing that is known how to be compared.
    """
    get = output.get if hasattr(output, "get") else lambda name: None
    if (masks := get("masks_queries_logits")) is not None:
        classes = get("class_queries_logits").float()
        return Reading("segments", _segments(classes, masks.float()), classes.shape[-1] - 1)
    if (masks := get("pred_masks")) is not None and masks.ndim == 5:
        return Reading("masks", (masks > 0).flatten(1, 2))
    kind, value = reading(output)
    return Reading(kind, value, get("logits").shape[1] if kind == "classes" else 0)


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


class Agreement:
    """Adds up batches; `value` is 1 where everything is as in the dense model, and lower else."""

    def __init__(self) -> None:
        self._sums: Tensor | float = 0.0
        self._images = 0
        self._finish: Callable[[Tensor], float] | None = None

    def add(self, output: Reading, dense: Reading) -> None:
        value = _resized(output, dense)
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
            (number,) = mean_agreement((dense.kind, value), (dense.kind, dense.value)).values()
            if not math.isfinite(number):
                raise ValueError(
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


def _resized(output: Reading, dense: Reading) -> Tensor:
    """At the size of the dense reading: that of a lower resolution is smaller."""
    value, kind = output.value, dense.kind
    if kind not in ("segments", "masks") or value.shape == dense.value.shape:
        # `mean_agreement` resizes depth and features.
        if kind == "classes" and value.shape != dense.value.shape:
            return F.interpolate(value[:, None].float(), dense.value.shape[-2:], mode="nearest")[:, 0].long()
        return value
    maps = value if value.ndim == 4 else value[:, None]
    sized = F.interpolate(maps.double(), dense.value.shape[-2:], mode="nearest").to(value.dtype)
    return sized if value.ndim == 4 else sized[:, 0]
