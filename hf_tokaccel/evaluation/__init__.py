"""Evaluation shared by the example scripts: data sets, metrics, the loop, timing, rivals, tables and pictures."""

from .depth import DEPTH_METRICS, DepthMetric, DepthProtocol, align, crop_mask, depth_errors, metrics_from_sums
from .environment import describe_environment
from .loop import Variant, evaluate_variants, make_accelerator
from .report import Result, Row, to_markdown, to_table
from .speed import Timing, count_gflops, time_interleaved

__all__ = [
    "DEPTH_METRICS",
    "DepthMetric",
    "DepthProtocol",
    "Result",
    "Row",
    "Timing",
    "Variant",
    "align",
    "count_gflops",
    "crop_mask",
    "depth_errors",
    "describe_environment",
    "evaluate_variants",
    "make_accelerator",
    "metrics_from_sums",
    "time_interleaved",
    "to_markdown",
    "to_table",
]
