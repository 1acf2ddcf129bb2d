"""Results as plain data, and the same as a table on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

GFLOPS_NOTE = (
    "GFLOPs per image as torch.utils.flop_counter counts: a multiply and an add are 2 FLOPs; matrix products, "
    "convolutions and attention count, element-wise work does not"
)
INTERVAL_NOTE = (
    "95 %: percentiles of a bootstrap over images; kept: share of the dense value, dense and row on the same images"
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
        intervals: 95 % confidence intervals of some metrics, over the images.
        classes: Quality per class; None where a class does not occur.
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
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict) -> Row:
        metrics = {name: _number(value) for name, value in values["metrics"].items()}
        intervals = {name: tuple(map(_number, ends)) for name, ends in values.get("intervals", {}).items()}
        size = tuple(values["input_size"])
        return cls(**{**values, "input_size": size, "metrics": metrics, "intervals": intervals})


def _plain(value: Any) -> Any:
    """What JSON can hold: null for numbers that are not finite, such as a share of nothing."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass
class Result:
    """A whole comparison, enough to repeat it and to fill a model card.

    Attributes:
        task: What is measured, such as `"depth-estimation"`; it decides the columns.
        model: Hub id or folder.
        dataset: Data set and split.
        num_images: Images that were scored.
        num_processes: Processes that shared the work; timing is by the first alone.
        protocol: How errors were taken.
        options: Batch size, dtype and whatever else was chosen.
        environment: Machine, versions, commit and command.
        rows: Lines of the table, the dense one first.
        notes: Sentences that belong under the table.
        skipped: Images that were left out because they cannot be read, each with the reason.
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
    skipped: list[str] = field(default_factory=list)

    @property
    def columns(self) -> tuple[Column, ...]:
        """What a table shows of the metrics, the most important first."""
        return COLUMNS[self.task]

    @property
    def footnotes(self) -> list[str]:
        """Everything that a table must say, as sentences without a full stop."""
        skipped = f"{len(self.skipped)} images were skipped: {'; '.join(self.skipped)}"
        intervals = [INTERVAL_NOTE] if any(row.intervals for row in self.rows) else []
        return [GFLOPS_NOTE, *intervals, *self.notes, *([skipped] if self.skipped else [])]

    def to_dict(self) -> dict:
        return asdict(self)

    def row_to_show(self) -> int | None:
        """Index of the accelerated row for a picture: the best by the first metric in the middle group by cost."""
        groups = sorted({row.group for row in self.rows if row.kind == "clusters"})
        if not groups:
            return None
        middle = groups[len(groups) // 2]
        candidates = [i for i, row in enumerate(self.rows) if row.kind == "clusters" and row.group == middle]
        first = self.columns[0]
        best = max if first.higher_is_better else min
        return best(candidates, key=lambda i: self.rows[i].metrics[first.key])

    def heading(self, index: int) -> str:
        """Line over a picture of one accelerated row."""
        row = self.rows[index]
        return (
            f"{self.model}: dense against {row.name}. "
            f"{row.speedup:.2f}x as fast, {100 * row.gflops_ratio:.0f} % of the GFLOPs"
        )

    @classmethod
    def from_dict(cls, values: dict) -> Result:
        return cls(**{**values, "rows": [Row.from_dict(row) for row in values["rows"]]})

    def save(self, path: str | Path) -> None:
        text = json.dumps(_plain(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Column:
    """Heading and format of one metric, and of its confidence interval if it has one."""

    key: str
    heading: str
    format: str = "{:.4f}"
    interval_format: str | None = None
    factor: int = 1
    higher_is_better: bool = True

    def headings(self) -> list[str]:
        return [self.heading] if self.interval_format is None else [self.heading, "95 %"]

    def cells(self, row: Row) -> list[str]:
        cells = [self.format.format(self.factor * row.metrics[self.key])]
        if self.interval_format is not None:
            ends = row.intervals.get(self.key, ())
            cells.append("-".join(self.interval_format.format(self.factor * end) for end in ends))
        return cells


def _precisions(kind: str) -> tuple[Column, ...]:
    """What COCO's evaluation says of boxes or masks, in percent."""
    headings = {"ap": f"{kind} AP ↑", "ap50": "AP50 ↑", "ap75": "AP75 ↑", "kept": "kept % ↑"}
    sizes = {"ap_small": "small ↑", "ap_medium": "medium ↑", "ap_large": "large ↑"}
    keys = {key if key == "kept" else f"{kind}_{key}": heading for key, heading in (headings | sizes).items()}
    return tuple(Column(key, heading, "{:.1f}", factor=100) for key, heading in keys.items())


COLUMNS = {
    "depth-estimation": (
        Column("abs_rel", "AbsRel ↓", higher_is_better=False),
        Column("rmse", "RMSE (m) ↓", "{:.3f}", higher_is_better=False),
        Column("log10", "log10 ↓", higher_is_better=False),
        Column("delta1", "δ1 ↑"),
        Column("delta2", "δ2 ↑"),
        Column("delta3", "δ3 ↑"),
    ),
    "image-segmentation": (
        Column("miou", "mIoU ↑", interval_format="{:.3f}"),
        Column("kept", "kept % ↑", "{:.1f}", "{:.1f}", factor=100),
        Column("mean_accuracy", "mAcc ↑"),
        Column("pixel_accuracy", "aAcc ↑"),
    ),
    "panoptic-segmentation": (
        Column("pq", "PQ ↑", interval_format="{:.3f}"),
        Column("kept", "kept % ↑", "{:.1f}", "{:.1f}", factor=100),
        Column("sq", "SQ ↑"),
        Column("rq", "RQ ↑"),
        Column("pq_things", "PQ things ↑"),
        Column("pq_stuff", "PQ stuff ↑"),
    ),
    "object-detection": _precisions("box"),
    "instance-segmentation": (*_precisions("mask"), Column("box_ap", "box AP ↑", "{:.1f}", factor=100)),
    "mask-generation": (
        Column("miou", "mIoU ↑", interval_format="{:.3f}"),
        Column("chosen_miou", "own choice ↑"),
        Column("over_90", "IoU > 0.9 ↑", "{:.1f} %", factor=100),
    ),
}
CLASS_METRICS = {  # IoU elsewhere
    "object-detection": "Box AP",
    "instance-segmentation": "Mask AP",
    "panoptic-segmentation": "PQ",
}
_COST_HEADINGS = ("images/s ↑", "speed", "GFLOPs ↓", "of dense")


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cells(row: Row, columns: tuple[Column, ...]) -> list[str]:
    quality = [cell for column in columns for cell in column.cells(row)]
    cost = [
        f"{row.images_per_second:.1f}",
        f"{row.speedup:.2f}x",
        _three_digits(row.gflops),
        f"{100 * row.gflops_ratio:.0f} %",
    ]
    return [row.name, *quality, *cost]


def _headings(result: Result) -> list[str]:
    return [heading for column in result.columns for heading in column.headings()] + list(_COST_HEADINGS)


class WholeTable(Table):
    """A table that grows beyond a narrow terminal, where rich would cut numbers off; columns that fold do so first."""

    least = 20  # characters of a column that folds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = 1
        for column in self.columns:
            cells = (column.header, *column.cells)
            longest = max(cell_len(Text.from_markup(str(cell)).plain) for cell in cells)
            needed += min(longest, self.least if column.overflow == "fold" else longest) + 3  # padding and border
        wide = options.update(max_width=max(options.max_width, needed))
        yield from super().__rich_console__(console, wide)


def to_table(result: Result) -> Table:
    """The result for a terminal, one section per group of similar cost."""
    # Paths may hold brackets, which rich would take for markup.
    title = escape(f"{result.model} on {result.dataset}: {result.num_images} images")
    table = WholeTable(
        title=title,
        caption=escape(". ".join(result.footnotes)),
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("model", overflow="fold")  # On a narrow terminal names wrap, and numbers stay whole.
    for heading in _headings(result):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, row in enumerate(result.rows):
        last_of_group = i + 1 == len(result.rows) or result.rows[i + 1].group != row.group
        style = "bold" if row.kind == "dense" else "dim" if row.kind != "clusters" else None
        table.add_row(*_cells(row, result.columns), end_section=last_of_group, style=style)
    return table


def to_class_table(result: Result, limit: int = 20) -> Table:
    """Quality per class of the dense row and of the first group, as in JSON; of many classes those that lose most."""
    shown = [row for row in result.rows if row.kind in ("dense", "clusters") and row.group <= 1]
    dense, last = shown[0].classes, shown[-1].classes
    loss = {name: (dense[name] or 0) - (last[name] or 0) for name in dense if dense[name] is not None}
    names = list(loss) if len(loss) <= limit else sorted(loss, key=loss.get, reverse=True)[:limit]
    which = (
        "" if len(names) == len(loss) else f", the {limit} of {len(loss)} classes that lose most in the last column"
    )
    table = Table(
        title=f"{CLASS_METRICS.get(result.task, 'IoU')} per class{which}",
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("class")
    for row in shown:
        # The first group shares its grid and schedule, which its rows in the table above name.
        table.add_column(escape(row.name.partition(", ")[2] or row.name), justify="right")
    for name in names:
        values = [row.classes[name] for row in shown]
        table.add_row(escape(name), *("" if value is None else f"{value:.4f}" for value in values))
    return table


def to_markdown(result: Result) -> str:
    """The result as a Markdown table with what it depends on, for a README or a model card."""
    headings = ["model", *_headings(result)]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *(_cells(row, result.columns) for row in result.rows)]
    machine, versions = result.environment["machine"], result.environment["versions"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    git = result.environment.get("git")
    footer = [
        f"{result.model} on {result.dataset}, {result.num_images} images",
        f"{device}, threads {machine['threads']}, batch {result.options['batch_size']}, {result.options['dtype']}",
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}",
        *([f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}"] if git else []),
        *result.footnotes,
    ]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", ". ".join(footer) + "."]) + "\n"
