"""Benchmark of rivals on one model: dense, clusters, grid pooling, lower resolution, token merging, in every mode.

Names are imported when they are first used: what draws tables on a terminal is not needed to build an architecture.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..results.tables import to_markdown, to_table
    from .architectures import ARCHITECTURES, build_architecture
    from .modes import Mode, parse_mode
    from .result import BenchResult, BenchRow
    from .run import bench

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ARCHITECTURES": ".architectures",
        "BenchResult": ".result",
        "BenchRow": ".result",
        "Mode": ".modes",
        "bench": ".run",
        "build_architecture": ".architectures",
        "parse_mode": ".modes",
        "to_markdown": "..results.tables",
        "to_table": "..results.tables",
    },
)

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
