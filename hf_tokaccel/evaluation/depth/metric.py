"""Depth errors as an `evaluate.Metric`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from ...measure.metrics.depth import DepthProtocol, metrics_from_sums


class DepthMetric(evaluate.Metric):
    """The depth metrics as an `evaluate.Metric` that needs no download and combines with others.

    `compute` takes lists of (H, W) maps, which may differ in size, and the fields of `DepthProtocol` as keyword
    arguments. The evaluation loop uses `DepthProtocol.sums` instead, which never stores a map.
    """

    def __init__(self, *args, keep_in_memory: bool = True, **kwargs):
        super().__init__(*args, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="AbsRel, RMSE, log10 and delta1..3 of depth maps, averaged per image and then over images.",
            citation="Eigen et al., Depth Map Prediction from a Single Image using a Multi-Scale Deep Network, 2014",
            inputs_description="predictions, references: lists of (H, W) depth maps, the references in metres.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions: Sequence, references: Sequence, **protocol) -> dict[str, float]:
        rule = DepthProtocol(**protocol)
        pairs = zip(predictions, references, strict=True)
        sums = [rule.sums(*(torch.as_tensor(np.asarray(m, dtype=np.float32)) for m in pair)) for pair in pairs]
        return metrics_from_sums(torch.stack(sums).sum(0))
