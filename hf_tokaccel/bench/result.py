"""Results of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..results.report import Line, Report, Sheet, Where
from ..results.rows import GFLOPS_NOTE, row_style

_READS = {
    "relative_error": "rel. error to dense ↓",
    "same_class": "same class as dense ↑",
    "cosine": "cosine to dense ↑",
}
_FOOTNOTES = (
    "p50 and p90: median and 90th percentile of the time of a batch, all rows timed in turns",
    "speed: against dense in the same mode, median over rounds; overall: against the first row",
    "method: clustering (or merging) and reconstruction run by themselves, share of the row's time; layers alone: the "
    "speed that would be left if they cost nothing",
    "memory: what a call takes at most beyond the weights",
    GFLOPS_NOTE,
)
_THROUGHPUT = "in a row: images/s of calls that are not waited for one by one"


@dataclass
class BenchRow:
    """One rival in one mode.

    Attributes:
        name: of the rival.
        kind: `"dense"`, `"clusters"`, `"grid pooling"`, `"lower resolution"`, `"token merging"` or
            `"token merging, delta"`.
        group: rows of one group have similar GFLOPs.
        mode: how it ran.
        accel: setting of clusters or grid pooling, or None.
        per_layer: tokens merged before each block, or None.
        input_size: (height, width) in pixels.
        seconds: `p50`, `p10` and `p90` of a batch.
        images_per_second: at the median time.
        speedup: against dense in the same mode.
        speedup_overall: against the first row.
        peak_bytes: memory of a call beyond the weights; None where it cannot be measured.
        gflops: billion FLOPs of an image.
        gflops_ratio: to dense.
        agreement: with dense in the first mode; see `measure.agreement.mean_agreement`.
        method_seconds: of clustering (or merging) and reconstruction by themselves; None where there is none.
        layers_only_speedup: what `speedup` would be if they cost nothing.
        throughput: images per second of calls that are not waited for one by one; None on a CPU, where a call that
            has returned is over.
    """

    name: str
    kind: str
    group: int
    mode: str
    accel: dict | None
    per_layer: int | None
    input_size: tuple[int, int]
    seconds: dict[str, float]
    images_per_second: float
    speedup: float
    speedup_overall: float
    peak_bytes: int | None
    gflops: float
    gflops_ratio: float
    agreement: dict[str, float]
    method_seconds: float | None = None
    layers_only_speedup: float | None = None
    throughput: float | None = None


@dataclass
class BenchResult(Report):
    """A whole benchmark, with what it depends on.

    Attributes:
        model: Hub id, folder or architecture.
        image_size: (height, width) in pixels.
        batch_size: images of a call.
        rounds: timed rounds.
        weights: parameters of the model.
        environment: machine, versions, commit and command.
        rows: the modes one after the other, each beginning with dense.
        notes: rows that are missing and why, and what else belongs under the table.
    """

    model: str
    image_size: tuple[int, int]
    batch_size: int
    rounds: int
    weights: int
    environment: dict
    rows: list[BenchRow]
    notes: list[str] = field(default_factory=list)

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(row.mode for row in self.rows))

    def sheet(self) -> Sheet:
        """One section for each mode and group."""
        several = len(self.modes) > 1
        size = "x".join(map(str, self.image_size))
        return Sheet(
            ["model", *(["mode"] * several), *_headings(self)],
            [
                Line(
                    [row.name, *([row.mode] * several), *_cells(row, self)],
                    row_style(row.kind),
                    after is None or (row.mode, row.group) != (after.mode, after.group),
                )
                for row, after in zip(self.rows, [*self.rows[1:], None], strict=True)
            ],
            names=1 + several,
            title=f"{self.model} at {size}, batch {self.batch_size}",
            notes=[*self._about(size), *([_THROUGHPUT] * _in_a_row(self)), *_FOOTNOTES, *self.notes],
        )

    def _about(self, size: str) -> list[str]:
        where = Where.of(self.environment)
        return [
            f"{self.model}, {self.weights / 1e6:.0f} M parameters, {size}, batch {self.batch_size}, "
            f"{self.rounds} rounds",
            f"{where.device}, {where.threads}; {where.versions}",
            *filter(None, [where.commit]),
        ]

    @classmethod
    def from_dict(cls, values: dict) -> BenchResult:
        rows = [BenchRow(**{**row, "input_size": tuple(row["input_size"])}) for row in values["rows"]]
        return cls(**{**values, "image_size": tuple(values["image_size"]), "rows": rows})


def _in_a_row(result: BenchResult) -> bool:
    return any(row.throughput is not None for row in result.rows)


def _headings(result: BenchResult) -> list[str]:
    reads = next(iter(result.rows[-1].agreement or result.rows[0].agreement))
    several = ["overall"] if len(result.modes) > 1 else []
    in_a_row = ["in a row ↑"] if _in_a_row(result) else []
    return [
        "p50 ms ↓",
        "p90 ms ↓",
        "images/s ↑",
        *in_a_row,
        "speed ↑",
        *several,
        "GFLOPs ↓",
        "of dense",
        "memory MB ↓",
        _READS[reads],
        "method",
        "layers alone",
    ]


def _cells(row: BenchRow, result: BenchResult) -> list[str]:
    (agreed,) = row.agreement.values() or [None]
    several = [f"{row.speedup_overall:.2f}x"] if len(result.modes) > 1 else []
    in_a_row = ["" if row.throughput is None else f"{row.throughput:.2f}"] if _in_a_row(result) else []
    share = None if row.method_seconds is None else row.method_seconds / row.seconds["p50"]
    return [
        f"{1e3 * row.seconds['p50']:.1f}",
        f"{1e3 * row.seconds['p90']:.1f}",
        f"{row.images_per_second:.2f}",
        *in_a_row,
        f"{row.speedup:.2f}x",
        *several,
        f"{row.gflops:.4g}",
        f"{100 * row.gflops_ratio:.0f} %",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        "" if agreed is None else f"{agreed:.4f}",
        "" if share is None else f"{100 * share:.1f} %",
        "" if row.layers_only_speedup is None else f"{row.layers_only_speedup:.2f}x",
    ]
