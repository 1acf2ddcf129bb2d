"""Results as plain data, and the same as a table on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

GFLOPS_NOTE = (
    "GFLOPs per image as torch.utils.flop_counter counts: a multiply and an add are 2 FLOPs; matrix products, "
    "convolutions and attention count, element-wise work does not"
)


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name: What was run.
        kind: `"dense"`, `"clusters"`, `"grid pooling"` or `"lower resolution"`.
        accel: Cluster setting, or None.
        input_size: Size of the model's input in pixels, (height, width).
        metrics: Quality.
        gflops: Billion FLOPs per image.
        gflops_ratio: GFLOPs relative to the dense row.
        images_per_second: At the median time of a batch.
        speedup: Median ratio of the dense row's time to this row's.
        seconds: Median, 10th and 90th percentile of the time of a batch.
        group: Rows of one group have similar GFLOPs.
    """

    name: str
    kind: str
    accel: dict | None
    input_size: tuple[int, int]
    metrics: dict[str, float]
    gflops: float
    gflops_ratio: float
    images_per_second: float
    speedup: float
    seconds: dict[str, float]
    group: int = 0


@dataclass
class Result:
    """A whole comparison, enough to repeat it and to fill a model card.

    Attributes:
        task: Pipeline tag of the Hub, such as `"depth-estimation"`.
        model: Hub id or folder.
        dataset: Data set and split.
        num_images: Images that were scored.
        num_processes: Processes that shared the work; timing is by the first alone.
        protocol: How errors were taken.
        options: Batch size, dtype and whatever else was chosen.
        environment: Machine, versions, commit and command.
        rows: Lines of the table, the dense one first.
        notes: Sentences that belong under the table.
    """

    task: str
    model: str
    dataset: str
    num_images: int
    num_processes: int
    protocol: dict
    options: dict
    environment: dict
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)

    def row_to_show(self) -> int | None:
        """Index of the accelerated row for a picture: the best by the first metric in the middle group by cost."""
        groups = sorted({row.group for row in self.rows if row.kind == "clusters"})
        if not groups:
            return None
        middle = groups[len(groups) // 2]
        candidates = [i for i, row in enumerate(self.rows) if row.kind == "clusters" and row.group == middle]
        return min(candidates, key=lambda i: next(iter(self.rows[i].metrics.values())))

    def heading(self, index: int) -> str:
        """Line over a picture of one accelerated row."""
        row = self.rows[index]
        return (
            f"{self.model}: dense against {row.name}. "
            f"{row.speedup:.2f}x as fast, {100 * row.gflops_ratio:.0f} % of the GFLOPs"
        )

    @classmethod
    def from_dict(cls, values: dict) -> Result:
        rows = [Row(**{**row, "input_size": tuple(row["input_size"])}) for row in values["rows"]]
        return cls(**{**values, "rows": rows})

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Column:
    """Heading and format of one metric."""

    key: str
    heading: str
    format: str = "{:.3f}"


DEPTH_COLUMNS = (
    Column("abs_rel", "AbsRel ↓", "{:.4f}"),
    Column("rmse", "RMSE (m) ↓"),
    Column("log10", "log10 ↓", "{:.4f}"),
    Column("delta1", "δ1 ↑", "{:.4f}"),
    Column("delta2", "δ2 ↑", "{:.4f}"),
    Column("delta3", "δ3 ↑", "{:.4f}"),
)
_COST_HEADINGS = ("images/s ↑", "speed", "GFLOPs ↓", "of dense")


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cells(row: Row, columns: tuple[Column, ...]) -> list[str]:
    quality = [column.format.format(row.metrics[column.key]) for column in columns]
    cost = [
        f"{row.images_per_second:.1f}",
        f"{row.speedup:.2f}x",
        _three_digits(row.gflops),
        f"{100 * row.gflops_ratio:.0f} %",
    ]
    return [row.name, *quality, *cost]


def to_table(result: Result, columns: tuple[Column, ...] = DEPTH_COLUMNS) -> Table:
    """The result for a terminal, one section per group of similar cost."""
    # Paths may hold brackets, which rich would take for markup.
    title = escape(f"{result.model} on {result.dataset}: {result.num_images} images")
    table = Table(
        title=title,
        caption=escape(". ".join([GFLOPS_NOTE, *result.notes])),
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("model", overflow="fold")  # On a narrow terminal names wrap, and numbers stay whole.
    for heading in (*(column.heading for column in columns), *_COST_HEADINGS):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for i, row in enumerate(result.rows):
        last_of_group = i + 1 == len(result.rows) or result.rows[i + 1].group != row.group
        style = "bold" if row.kind == "dense" else "dim" if row.kind != "clusters" else None
        table.add_row(*_cells(row, columns), end_section=last_of_group, style=style)
    return table


def to_markdown(result: Result, columns: tuple[Column, ...] = DEPTH_COLUMNS) -> str:
    """The result as a Markdown table with what it depends on, for a README or a model card."""
    headings = ["model", *(column.heading for column in columns), *_COST_HEADINGS]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *(_cells(row, columns) for row in result.rows)]
    machine, versions = result.environment["machine"], result.environment["versions"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    git = result.environment.get("git")
    footer = [
        f"{result.model} on {result.dataset}, {result.num_images} images",
        f"{device}, threads {machine['threads']}, batch {result.options['batch_size']}, {result.options['dtype']}",
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}",
        *([f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}"] if git else []),
        GFLOPS_NOTE,
        *result.notes,
    ]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", ". ".join(footer) + "."]) + "\n"
