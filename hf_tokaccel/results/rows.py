"""Results as plain data: rows, and what their columns are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .report import Line, Report, Sheet, Where

GFLOPS_NOTE = (
    "GFLOPs per image as torch.utils.flop_counter counts: a multiply and an add are 2 FLOPs; matrix products, "
    "convolutions and attention count, element-wise work does not"
)
INTERVAL_NOTE = (
    "95 %: percentiles of a bootstrap over images; kept: share of the dense value, dense and row on the same images"
)


_COST_HEADINGS = ("images/s ↑", "speed", "GFLOPs ↓", "of dense")


def row_style(kind: str) -> str | None:
    """How a row stands out on a terminal: the dense one, and the clusters among their rivals."""
    return "bold" if kind == "dense" else None if kind == "clusters" else "dim"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass
class Row:
    """One line of a table.

    Attributes:
        name: What was run.
        kind: `"dense"`, `"clusters"` or a key of `hf_tokaccel.rivals.build.RIVALS`.
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

    def cells(self, columns: tuple[Column, ...]) -> list[str]:
        """Name, quality and cost in words."""
        quality = [cell for column in columns for cell in column.cells(self)]
        cost = [
            f"{self.images_per_second:.1f}",
            f"{self.speedup:.2f}x",
            _three_digits(self.gflops),
            f"{100 * self.gflops_ratio:.0f} %",
        ]
        return [self.name, *quality, *cost]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass
class Result(Report):
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

    def sheet(self) -> Sheet:
        """One section per group of similar cost."""
        where, options = Where.of(self.environment), self.options
        about = [
            f"{self.model} on {self.dataset}, {self.num_images} images",
            f"{where.device}, {where.threads}, batch {options['batch_size']}, {options['dtype']}",
            where.versions,
            *filter(None, [where.commit]),
        ]
        headings = [heading for column in self.columns for heading in column.headings()]
        return Sheet(
            ["model", *headings, *_COST_HEADINGS],
            [
                Line(row.cells(self.columns), row_style(row.kind), after is None or after.group != row.group)
                for row, after in zip(self.rows, [*self.rows[1:], None], strict=True)
            ],
            title=f"{self.model} on {self.dataset}: {self.num_images} images",
            notes=self.footnotes,
            about=about,
        )

    @property
    def footnotes(self) -> list[str]:
        """Everything that a table must say, as sentences without a full stop."""
        skipped = f"{len(self.skipped)} images were skipped: {'; '.join(self.skipped)}"
        intervals = [INTERVAL_NOTE] if any(row.intervals for row in self.rows) else []
        return [GFLOPS_NOTE, *intervals, *self.notes, *([skipped] if self.skipped else [])]

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
