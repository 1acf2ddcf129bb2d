"""Benchmark of rivals on one model: dense, clusters, grid pooling, lower resolution, token merging, in every mode."""

from ..results.tables import to_markdown, to_table
from .architectures import ARCHITECTURES, build_architecture
from .modes import Mode, parse_mode
from .result import BenchResult, BenchRow
from .run import bench

__all__ = [
    "ARCHITECTURES",
    "BenchResult",
    "BenchRow",
    "Mode",
    "bench",
    "build_architecture",
    "parse_mode",
    "to_markdown",
    "to_table",
]
