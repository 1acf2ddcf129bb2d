"""Semantic segmentation as an `evaluate.Metric`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from ...measure.metrics.segmentation import IGNORED, image_sums, metrics_from_counts, num_sums


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
