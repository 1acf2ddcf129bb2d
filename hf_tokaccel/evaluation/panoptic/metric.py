"""Panoptic quality as an `evaluate.Metric`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from ...measure.metrics.panoptic import image_sums, metrics_from_sums, num_sums


class PanopticMetric(evaluate.Metric):
    """The metrics as an `evaluate.Metric` that needs no download and combines with others.

    `compute` takes lists of (H, W) maps of segments, which may differ in size: 65536 times the class plus the number
    of the segment, from 1 (0 in a reference is a crowd), or -1 for void. Its keyword argument `things` says of each
    class whether it is one of things. The evaluation loop uses `image_sums` instead, which never stores a map.
    """

    def __init__(self, *args, keep_in_memory: bool = True, **kwargs):
        super().__init__(*args, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Panoptic, segmentation and recognition quality of a data set, and the first per class.",
            citation="Kirillov et al., Panoptic Segmentation, CVPR 2019",
            inputs_description="predictions, references: lists of (H, W) maps of segments.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions: Sequence, references: Sequence, things: Sequence[bool]) -> dict:
        total = torch.zeros(num_sums(len(things)), dtype=torch.float64)
        for pair in zip(predictions, references, strict=True):
            prediction, truth = (torch.as_tensor(np.asarray(m, dtype=np.int64)) for m in pair)
            total += image_sums(prediction, truth, len(things))
        metrics = metrics_from_sums(total, things)
        per_class = metrics.pop("pq_of").tolist()
        return {name: value.item() for name, value in metrics.items()} | {"pq_of": per_class}
