"""Evaluation shared by the example scripts: data sets, metrics, the loop, timing, rivals, tables and pictures."""

from ..lazy import lazy_names

# Found when asked for, since the command line reads the options of the evaluations without the seconds of torch.
_MODULES = {
    "DEPTH_METRICS": "..measure.metrics.depth",
    "DepthMetric": ".depth.metric",
    "DepthProtocol": "..measure.metrics.depth",
    "PanopticMetric": ".panoptic.metric",
    "Result": "..results.rows",
    "Row": "..results.rows",
    "Scores": ".loop",
    "SegmentationMetric": ".segmentation.metric",
    "Summary": ".task",
    "Task": ".task",
    "Timing": "..measure.speed",
    "UnreadableError": "..images",
    "Variant": "..measure.variant",
    "Windows": ".windows",
    "align": "..measure.metrics.depth",
    "confusion_matrix": "..measure.metrics.segmentation",
    "count_gflops": "..measure.flops",
    "crop_mask": "..measure.metrics.depth",
    "depth_errors": "..measure.metrics.depth",
    "describe_environment": "..measure.environment",
    "evaluate_variants": ".loop",
    "make_accelerator": ".processes",
    "metrics_from_counts": "..measure.metrics.segmentation",
    "metrics_from_sums": "..measure.metrics.depth",
    "time_interleaved": "..measure.speed",
    "to_markdown": "..results.tables",
    "to_table": "..results.tables",
}
__all__ = list(_MODULES)

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
