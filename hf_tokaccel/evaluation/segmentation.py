"""Metrics of semantic segmentation, and how sure they are.

What is kept of an image is the part of its confusion matrix that the metrics read: for each class the pixels that are
rightly found, that are predicted and that are true. Those are whole numbers and add up over images, so any split of a
data set over batches or processes gives the same result, and resampling images is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

IGNORED = -1  # class of pixels that do not count


def num_sums(num_classes: int) -> int:
    """Length of `image_sums`."""
    return 3 * num_classes + 1


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Pixels by true class (rows) and predicted class (columns), int64 (num_classes, num_classes).

    Args:
        prediction: Classes, whole numbers of any shape.
        label: True classes in the same shape; pixels of class `IGNORED` do not count.
        num_classes: Number of classes.

    Raises:
        ValueError: Shapes that differ, or a class that does not exist.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction of shape {tuple(prediction.shape)} must have the shape of its label, {tuple(label.shape)}"
        )
    valid = label != IGNORED
    label, prediction = label[valid].long(), prediction[valid].long()
    for name, classes in (("label", label), ("prediction", prediction)):
        if classes.numel() and not (classes.min() >= 0 and classes.max() < num_classes):
            wrong = int(classes[(classes < 0) | (classes >= num_classes)][0])
            raise ValueError(f"{name} holds class {wrong}, which must be from 0 to {num_classes - 1}, or {IGNORED}")
    return torch.bincount(label * num_classes + prediction, minlength=num_classes**2).view(num_classes, num_classes)


def image_sums(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Additive sums of one image: pixels per class that are found, predicted and true, then 1.

    Args:
        prediction: Classes (H, W).
        label: True classes (H, W), `IGNORED` where unknown.
        num_classes: Number C of classes.

    Returns:
        Float64 tensor (3 C + 1,) of whole numbers; all zero where the label has no valid pixel.
    """
    matrix = confusion_matrix(prediction, label, num_classes).cpu()  # MPS has no float64.
    counts = torch.cat([matrix.diagonal(), matrix.sum(0), matrix.sum(1)]).double()
    return torch.cat([counts, (counts.sum() > 0).double()[None]])


def _mean_known(values: Tensor) -> Tensor:
    return values.nanmean(-1)


def metrics_from_counts(sums: Tensor) -> dict[str, Tensor]:
    """Metrics from sums of `image_sums`.

    Args:
        sums: (..., 3 C + 1).

    Returns:
        Float64 tensors (...): `miou` and `mean_accuracy`, means over the classes that occur (in truth or prediction;
        in truth), and `pixel_accuracy`; and `iou` (..., C), NaN where a class does not occur.
    """
    found, predicted, true = sums[..., :-1].unflatten(-1, (3, -1)).unbind(-2)
    # 0 / 0 is NaN, which the means leave out.
    iou = found / (true + predicted - found)
    return {
        "miou": _mean_known(iou),
        "mean_accuracy": _mean_known(found / true),
        "pixel_accuracy": found.sum(-1) / true.sum(-1),
        "iou": iou,
    }


def bootstrap(counts: Tensor, resamples: int = 1000, seed: int = 0) -> Tensor:
    """Sums over images drawn with replacement, the same draws for every variant.

    Args:
        counts: Sums per image (variants, images, S).
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        Float64 tensor (variants, resamples, S).
    """
    number = counts.shape[1]
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
    return torch.from_numpy(drawn).double() @ counts


def interval(values: Tensor) -> tuple[float, float]:
    """2.5th and 97.5th percentile of resampled values (R,)."""
    low, high = torch.nanquantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


class SegmentationMetric(evaluate.Metric):
    """The metrics as an `evaluate.Metric` that needs no download and combines with others.

    `compute` takes lists of (H, W) maps of classes, which may differ in size, with keyword arguments `num_classes` and
    `ignored`, the values of references that do not count. The evaluation loop uses `image_sums` instead, which never
    stores a map.
    """

    def __init__(self, *args, keep_in_memory: bool = True, **kwargs):
        super().__init__(*args, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description="mIoU, mean accuracy and pixel accuracy over all pixels of a data set, and IoU per class.",
            citation="Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, 2015",
            inputs_description="predictions, references: lists of (H, W) maps of classes.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(
        self, predictions: Sequence, references: Sequence, num_classes: int, ignored: Sequence[int] = (IGNORED, 255)
    ) -> dict:
        total = torch.zeros(num_sums(num_classes), dtype=torch.float64)
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, label = (torch.as_tensor(np.asarray(m, dtype=np.int64)) for m in (prediction, reference))
            label = label.masked_fill(torch.isin(label, torch.tensor(list(ignored))), IGNORED)
            total += image_sums(prediction, label, num_classes)
        metrics = metrics_from_counts(total)
        per_class = metrics.pop("iou").tolist()
        return {name: value.item() for name, value in metrics.items()} | {"iou": per_class}
