"""Metrics of semantic segmentation, and how sure they are.

What is kept of an image is the part of its confusion matrix that the metrics read: for each class the pixels that are
rightly found, that are predicted and that are true. Those are whole numbers and add up over images, so any split of a
data set over batches or processes gives the same result, and resampling images is one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import UserError

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
        raise UserError(
            f"prediction of shape {tuple(prediction.shape)} must have the shape of its label, {tuple(label.shape)}"
        )
    valid = label != IGNORED
    label, prediction = label[valid].long(), prediction[valid].long()
    for name, classes in (("label", label), ("prediction", prediction)):
        if classes.numel() and not (classes.min() >= 0 and classes.max() < num_classes):
            wrong = int(classes[(classes < 0) | (classes >= num_classes)][0])
            raise UserError(f"{name} holds class {wrong}, which must be from 0 to {num_classes - 1}, or {IGNORED}")
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
