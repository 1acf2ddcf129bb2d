"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4), with COCO's rules for crowds.

A map of segments holds one number per pixel: `STEP` times the class plus the number of the segment, or `VOID`. What is
kept of an image is, for each class, the summed IoU and the numbers of true positives, false positives and false
negatives. Those add up over images, so any split of a data set over batches or processes gives the same result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...checks import UserError

VOID = -1  # pixels of no segment
STEP = 1 << 16
CROWD = 0  # number of true regions whose objects nobody told apart; segments are numbered from 1
METRICS = ("pq", "sq", "rq")


def num_sums(num_classes: int) -> int:
    """Length of `image_sums`."""
    return 4 * num_classes + 1


def code(class_index: int, number: int) -> int:
    """What a map of segments holds for a segment of a class; numbers are below `STEP`, and `CROWD` for a crowd."""
    return class_index * STEP + number


def classes_of(codes: Tensor) -> Tensor:
    """Class of every pixel or segment, `VOID` where there is none."""
    return codes.div(STEP, rounding_mode="floor")


def segment_map(ids: Tensor, codes: Mapping[int, int]) -> Tensor:
    """Map of segments, int64 (H, W).

    Args:
        ids: Stored id of every pixel, whole numbers (H, W).
        codes: From stored ids to codes; all other ids are void.
    """
    present, where = ids.unique(return_inverse=True)
    return torch.tensor([codes.get(int(i), VOID) for i in present], dtype=torch.int64)[where.cpu()]


class Overlaps:
    """Predicted against true segments of one image, void among both.

    Args:
        prediction: Map of segments (H, W).
        truth: Map of segments in the same shape.

    Attributes:
        found: Codes of the predicted segments (F,), in ascending order.
        true: Codes of the true segments (T,), likewise.
        shared: Pixels that they share, float64 (F, T).
        iou: Intersection over union without the void pixels of the truth (F, T).
        match: Whether they match: same class, neither void nor crowd, IoU above one half (F, T). None has two.

    Raises:
        ValueError: Shapes that differ.
    """

    def __init__(self, prediction: Tensor, truth: Tensor):
        if prediction.shape != truth.shape:
            raise UserError(
                f"prediction of shape {tuple(prediction.shape)} must have the shape of its label, {tuple(truth.shape)}"
            )
        self.found, found_at = prediction.cpu().long().unique(return_inverse=True)
        self.true, true_at = truth.cpu().long().unique(return_inverse=True)
        shape = len(self.found), len(self.true)
        pairs = (found_at * shape[1] + true_at).flatten().bincount(minlength=shape[0] * shape[1])
        self.shared = pairs.view(shape).double()
        self.area = self.shared.sum(1)
        self.void = self.shared[:, self.true == VOID].sum(1)
        union = (self.area - self.void)[:, None] + self.shared.sum(0) - self.shared
        self.iou = self.shared / union.clamp(min=1)  # It is 0 for two voids alone.
        self.crowd = (self.true != VOID) & (self.true % STEP == CROWD)
        self.counts = (self.true != VOID) & ~self.crowd
        self.same_class = classes_of(self.found)[:, None] == classes_of(self.true)
        self.match = self.same_class & self.counts & (self.iou > 0.5)

    def wrong(self) -> Tensor:
        """Predicted segments that count as wrong (F,): no match, and at most half void or crowd of their class."""
        excused = self.void + (self.shared * (self.same_class & self.crowd)).sum(1)
        return (self.found != VOID) & ~self.match.any(1) & (excused / self.area <= 0.5)


def image_sums(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Additive sums of one image: summed IoU of the matches, their number, false positives, false negatives, then 1.

    Args:
        prediction: Map of segments (H, W).
        truth: Map of segments (H, W); crowds have the number `CROWD`.
        num_classes: Number C of classes.

    Returns:
        Float64 tensor (4 C + 1,); all zero where the truth is void everywhere.

    Raises:
        ValueError: Shapes that differ, or a class that does not exist.
    """
    overlaps = Overlaps(prediction, truth)
    for name, codes in (("label", overlaps.true), ("prediction", overlaps.found)):
        classes = classes_of(codes)
        if classes.min() < VOID or classes.max() >= num_classes:
            bad = int(classes[(classes < VOID) | (classes >= num_classes)][0])
            raise UserError(f"{name} holds class {bad}, which must be from 0 to {num_classes - 1}, or {VOID} for void")
    sums = torch.zeros(4, num_classes, dtype=torch.float64)
    counted = (overlaps.true != VOID).any()
    if counted:
        true_classes, found_classes = classes_of(overlaps.true), classes_of(overlaps.found)
        hit, missed = overlaps.match.any(0), overlaps.counts & ~overlaps.match.any(0)
        sums[0].index_add_(0, true_classes[hit], (overlaps.iou * overlaps.match).sum(0)[hit])
        wrong = found_classes[overlaps.wrong()]
        for row, classes in ((1, true_classes[hit]), (2, wrong), (3, true_classes[missed])):
            sums[row] += classes.bincount(minlength=num_classes)
    return torch.cat([sums.flatten(), counted.double()[None]])


def metrics_from_sums(sums: Tensor, things: Sequence[bool]) -> dict[str, Tensor]:
    """Metrics from sums of `image_sums`.

    Args:
        sums: (..., 4 C + 1).
        things: Whether each class is one of things; the others are stuff.

    Returns:
        Float64 tensors (...): `pq`, `sq` and `rq`, means over the classes that occur in truth or prediction, the same
        of things as `pq_things` and of stuff as `pq_stuff`, and so on; and `pq_of` (..., C), NaN where a class does
        not occur.
    """
    iou, hits, wrong, missed = sums[..., :-1].unflatten(-1, (4, -1)).unbind(-2)
    # 0 / 0 is NaN, which the means leave out; a class without any match has a segmentation quality of 0.
    recognition = hits / (hits + (wrong + missed) / 2)
    segmentation = torch.where(recognition > 0, iou / hits.clamp(min=1), recognition)
    values = {"pq": iou / (hits + (wrong + missed) / 2), "sq": segmentation, "rq": recognition}
    metrics, is_thing = {"pq_of": values["pq"]}, torch.tensor(list(things), dtype=torch.bool)
    for part, chosen in (("", is_thing | True), ("_things", is_thing), ("_stuff", ~is_thing)):
        metrics |= {f"{name}{part}": value[..., chosen].nanmean(-1) for name, value in values.items()}
    return metrics


def align(prediction: Tensor, reference: Tensor, last: int = STEP - 1) -> Tensor:
    """The same segments (H, W): matches have the code of the reference, the others numbers downwards from `last`."""
    overlaps = Overlaps(prediction, reference)
    codes, best = {VOID: VOID}, overlaps.match.double().argmax(1)
    for index, found in enumerate(overlaps.found.tolist()):
        if overlaps.match[index].any():
            codes[found] = int(overlaps.true[best[index]])
        elif found != VOID:
            codes[found] = code(found // STEP, last - index)
    return segment_map(prediction, codes)
