"""Evaluation shared by the example scripts: data sets, metrics, the loop, timing, rivals, tables and pictures."""

from .depth import DEPTH_METRICS, DepthMetric, DepthProtocol, align, crop_mask, depth_errors, metrics_from_sums
from .environment import describe_environment
from .flops import count_gflops
from .loop import Scores, evaluate_variants
from .panoptic import PanopticMetric
from .processes import make_accelerator
from .report import Result, Row, to_markdown, to_table
from .segmentation import SegmentationMetric, confusion_matrix, metrics_from_counts
from .speed import Timing, time_interleaved
from .task import Summary, Task, UnreadableError, Variant
from .windows import Windows

__all__ = [
    "DEPTH_METRICS",
    "DepthMetric",
    "DepthProtocol",
    "PanopticMetric",
    "Result",
    "Row",
    "Scores",
    "SegmentationMetric",
    "Summary",
    "Task",
    "Timing",
    "UnreadableError",
    "Variant",
    "Windows",
    "align",
    "confusion_matrix",
    "count_gflops",
    "crop_mask",
    "depth_errors",
    "describe_environment",
    "evaluate_variants",
    "make_accelerator",
    "metrics_from_counts",
    "metrics_from_sums",
    "time_interleaved",
    "to_markdown",
    "to_table",
]
