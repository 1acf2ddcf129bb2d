"""Results of the benchmark as plain data, as a table on the terminal and as Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..results.rows import GFLOPS_NOTE
from ..results.tables import WholeTable

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


@dataclass
class BenchRow:
    """One rival in one mode.

    Attributes:
        name: of the rival.
        kind: `"dense"`, `"clusters"`, `"grid pooling"`, `"lower resolution"` or `"token merging"`.
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


@dataclass
class BenchResult:
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

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> BenchResult:
        rows = [BenchRow(**{**row, "input_size": tuple(row["input_size"])}) for row in values["rows"]]
        return cls(**{**values, "image_size": tuple(values["image_size"]), "rows": rows})

    def save(self, path: str | Path) -> None:
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> BenchResult:
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _headings(result: BenchResult) -> list[str]:
    reads = next(iter(result.rows[-1].agreement or result.rows[0].agreement))
    several = ["overall"] if len(result.modes) > 1 else []
    return [
        "p50 ms ↓",
        "p90 ms ↓",
        "images/s ↑",
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
    share = None if row.method_seconds is None else row.method_seconds / row.seconds["p50"]
    return [
        f"{1e3 * row.seconds['p50']:.1f}",
        f"{1e3 * row.seconds['p90']:.1f}",
        f"{row.images_per_second:.2f}",
        f"{row.speedup:.2f}x",
        *several,
        f"{row.gflops:.4g}",
        f"{100 * row.gflops_ratio:.0f} %",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        "" if agreed is None else f"{agreed:.4f}",
        "" if share is None else f"{100 * share:.1f} %",
        "" if row.layers_only_speedup is None else f"{row.layers_only_speedup:.2f}x",
    ]


def _footnotes(result: BenchResult) -> list[str]:
    machine, versions, git = (result.environment.get(key) for key in ("machine", "versions", "git"))
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    where = [
        f"{result.model}, {result.weights / 1e6:.0f} M parameters, {result.image_size[0]}x{result.image_size[1]}, "
        f"batch {result.batch_size}, {result.rounds} rounds",
        f"{device}, threads {machine['threads']}; torch {versions.get('torch')}, transformers "
        f"{versions.get('transformers')}",
    ]
    if git:
        where.append(f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}")
    return [*where, *_FOOTNOTES, *result.notes]


def to_table(result: BenchResult) -> Table:
    """The result for a terminal, one section for each mode and group."""
    size = "x".join(map(str, result.image_size))
    table = WholeTable(
        title=escape(f"{result.model} at {size}, batch {result.batch_size}"),
        caption=escape(". ".join(_footnotes(result))),
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    for heading in ("model", *(["mode"] * (len(result.modes) > 1))):
        table.add_column(heading, overflow="fold")
    for heading in _headings(result):
        table.add_column(heading, justify="right", no_wrap=True)
    for row, after in zip(result.rows, [*result.rows[1:], None], strict=True):
        last = after is None or (row.mode, row.group) != (after.mode, after.group)
        style = "bold" if row.kind == "dense" else "dim" if row.kind != "clusters" else None
        table.add_row(*_names(row, result), *_cells(row, result), end_section=last, style=style)
    return table


def _names(row: BenchRow, result: BenchResult) -> list[str]:
    return [escape(row.name), *([row.mode] * (len(result.modes) > 1))]


def to_markdown(result: BenchResult) -> str:
    """The result as a Markdown table, with what it depends on."""
    names = ["model", *(["mode"] * (len(result.modes) > 1))]
    headings = [*names, *_headings(result)]
    lines = [headings, ["---"] * len(names) + ["---:"] * (len(headings) - len(names))]
    lines += [[*_names(row, result), *_cells(row, result)] for row in result.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{'. '.join(_footnotes(result))}.\n"
