"""Evaluation shared by the example scripts: data sets, metrics, the loop, timing, rivals, tables and pictures."""

from ..images import UnreadableError
from ..lazy import lazy_names
from ..measure.environment import describe_environment
from ..measure.flops import count_gflops
from ..measure.metrics.depth import DEPTH_METRICS, DepthProtocol, align, crop_mask, depth_errors, metrics_from_sums
from ..measure.metrics.segmentation import confusion_matrix, metrics_from_counts
from ..measure.speed import Timing, time_interleaved
from ..measure.variant import Variant
from ..results.rows import Result, Row
from ..results.tables import to_markdown, to_table
from .loop import Scores, evaluate_variants
from .processes import make_accelerator
from .task import Summary, Task
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

# They are metrics of the library `evaluate`, which only they need.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DepthMetric": ".depth.metric",
        "PanopticMetric": ".panoptic.metric",
        "SegmentationMetric": ".segmentation.metric",
    },
)
