"""Plots of quality against cost: every row of an evaluation or a benchmark, rivals included."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..checks import UserError, brief, is_number
from .rows import Result

# Colour says how full resolution is rebuilt, shape and line what is shortened.
_COLOURS = {"soft": "#1d6fd1", "nearest": "#e07b00", "delta": "#1a9850"}
_SHAPES = {
    "clusters": ("o", "-"),
    "grid pooling": ("s", "--"),
    "lower resolution": ("^", ":"),
    "token merging": ("D", "-."),
    "token merging, delta": ("d", "-."),
}
_OTHER = ("v", ":")
_SQUEEZED = 4  # times as far from the others as these are from each other
# Of the width of the plot, what a label of a row outside takes.
_LABEL_WIDTH = 0.04
_RIVALS = {"lower resolution": "#6c6c6c", "token merging": "#8338ec", "token merging, delta": "#c77dff"}
_SETTING = re.compile(r" \d+x\d+(?: after \d+(?: to \d+)?)?| r?=?\d+ (?:per|a) layer")
_AGREEMENTS = {
    "relative_error": ("relative error against the dense output", False),
    "same_class": ("share of pixels or images with the dense model's class", True),
    "cosine": ("cosine with the dense features", True),
}


@dataclass(frozen=True)
class Point:
    """One row of a table.

    Attributes:
        method: What is varied along a curve, such as `"clusters, delta"`.
        kind: `"dense"`, `"clusters"`, `"grid pooling"`, `"lower resolution"`, `"token merging"`,
            `"token merging, delta"`.
        gflops: Billion FLOPs per image.
        speedup: Times as fast as the dense row.
        quality: In the unit of the plot.
        interval: 95 % confidence interval of the quality, if it is known.
    """

    method: str
    kind: str
    gflops: float
    speedup: float
    quality: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Plot:
    """What `draw_pareto` draws.

    Attributes:
        title: Line over the figure.
        quality: Label of the vertical axis.
        higher_is_better: Of the quality.
        points: The dense row first.
        colours: Of methods, in place of what their names ask for.
    """

    title: str
    quality: str
    higher_is_better: bool
    points: Sequence[Point]
    colours: Mapping[str, str] = field(default_factory=dict)


def method_of(name: str) -> str:
    """A row's name without the numbers that only say how much is saved."""
    return _SETTING.sub("", name, count=1)


def plot_of_result(result: Result) -> Plot:
    """An evaluation by the share of the dense quality that is kept, or by its first metric where that is not known."""
    column = next((c for c in result.columns if c.key == "kept"), result.columns[0])
    points = []
    for row in result.rows:
        ends = row.intervals.get(column.key)
        interval = None if ends is None else tuple(column.factor * end for end in ends)
        points.append(
            Point(
                method=method_of(row.name),
                kind=row.kind,
                gflops=row.gflops,
                speedup=row.speedup,
                quality=column.factor * row.metrics[column.key],
                interval=interval,
            )
        )
    label = column.heading
    if column.key == "kept":
        label = f"{result.columns[0].heading.split()[0]}, % of the dense model's ↑"
    title = f"{result.model} on {result.dataset}, {result.num_images} images"
    return Plot(title, label, column.higher_is_better, points)


def plot_of_bench(values: dict) -> Plot:
    """A benchmark in its first mode, by the agreement with the dense output.

    Args:
        values: `BenchResult.to_dict()`, or its JSON.

    Raises:
        ValueError: No row but the dense one says how far it agrees.
    """
    mode = values["rows"][0]["mode"]
    rows = [row for row in values["rows"] if row["mode"] == mode and row["agreement"]]
    if len(rows) < 2:
        raise UserError(f"the benchmark of {values['model']} has no rows with agreement to plot; run it with rivals")
    key = next(iter(rows[0]["agreement"]))
    points = [
        Point(method_of(row["name"]), row["kind"], row["gflops"], row["speedup"], row["agreement"][key])
        for row in rows
    ]
    label, higher = _AGREEMENTS[key]
    height, width = values["image_size"]
    title = f"{values['model']} at {height}x{width}, batch {values['batch_size']}, {mode}"
    return Plot(title, f"{label} {'↑' if higher else '↓'}", higher, points)


def load_plot(path: str | Path) -> Plot:
    """What a JSON file of `hf_tokaccel evaluate` or `hf_tokaccel bench` holds.

    Raises:
        ValueError: It is neither.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        is_bench = "agreement" in values["rows"][0]
        plot = plot_of_bench(values) if is_bench else plot_of_result(Result.from_dict(values))
    except UserError:
        raise
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(_not_ours(path)) from error
    for point in plot.points:
        numbers = (point.gflops, point.speedup, *(point.interval or ()))
        if not all(map(is_number, numbers)) or not (
            is_number(point.quality) or point.quality != point.quality
        ):  # or NaN
            raise UserError(f"{path}: the row of {brief(point.method)} has no numbers to plot")
    return plot


def _not_ours(path: str | Path) -> str:
    return (
        f"{path} holds no results to plot: give a JSON file that `hf_tokaccel evaluate` or `hf_tokaccel bench` wrote, "
        "for example outputs/evaluate_depth/result.json"
    )


def front(points: Sequence[Point], cost: str, higher_is_better: bool) -> list[Point]:
    """Points that no other beats in both quality and cost, the cheapest first.

    Args:
        points: To choose from.
        cost: `"gflops"`, the fewer the better, or `"speedup"`, the more the better.
        higher_is_better: Of the quality.
    """
    sign = 1 if higher_is_better else -1
    cheapness = (lambda p: -p.gflops) if cost == "gflops" else (lambda p: p.speedup)
    best, chosen = -float("inf"), []
    for point in sorted(points, key=lambda p: (cheapness(p), sign * p.quality), reverse=True):
        if sign * point.quality > best:
            best = sign * point.quality
            chosen.append(point)
    return chosen


def draw_pareto(plot: Plot, path: str | Path) -> Path:
    """Quality against GFLOPs and against speed, a curve for each method; the best of all on a grey band.

    Args:
        plot: What to draw.
        path: PNG file to write.
    """
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    labels = {"gflops": "GFLOPs per image (fewer is better)", "speedup": "times as fast as dense (more is better)"}
    for axis, (cost, label) in zip(axes, labels.items(), strict=True):
        best = front(plot.points, cost, plot.higher_is_better)
        axis.plot(
            [getattr(p, cost) for p in best],
            [p.quality for p in best],
            **{"color": "0.8", "linewidth": 7, "solid_capstyle": "round", "solid_joinstyle": "round", "zorder": 0},
            label="none is better in both" if len(best) > 1 else None,
        )
        for method, members in _by_method(plot.points).items():
            _draw_method(axis, method, members, cost, plot.colours.get(method))
        if (window := _window(plot.points)) is not None:
            axis.set_ylim(window)
            _mark_outside(axis, plot.points, cost, window)
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(plot.quality, fontsize=9)
    handles, names = axes[0].get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i].startswith("none"))
    figure.legend(
        [handles[i] for i in order],
        [names[i] for i in order],
        **{"loc": "outside lower center", "ncols": 4, "fontsize": 8, "frameon": False},
    )
    figure.suptitle(plot.title, fontsize=10)
    figure.savefig(path)
    return Path(path)


def _window(points: Sequence[Point]) -> tuple[float, float] | None:
    """Vertical range without the lower resolutions, where these would press all other rows into a line."""
    others = [p for p in points if p.kind != "lower resolution"]
    ends = [end for p in others for end in (p.quality, *(p.interval or ()))]
    low, high = min(ends), max(ends)
    everything = [p.quality for p in points]
    if max(*everything, high) - min(*everything, low) < _SQUEEZED * (high - low) or low == high:
        return None
    edge = 0.15 * (high - low)
    return low - edge, high + edge


def _mark_outside(axis, points: Sequence[Point], cost: str, window: tuple[float, float]) -> None:
    """Says where the rows are that the range leaves out; rows too near each other share a label."""
    low, high = window
    for above in (False, True):
        outside = [p for p in points if (p.quality > high if above else p.quality < low)]
        labels: list[tuple[float, list[str]]] = []
        for point in sorted(outside, key=lambda p: getattr(p, cost)):
            x = getattr(point, cost)
            shape = {"marker": 6 if above else 7, "color": _RIVALS.get(point.kind, "#555555"), "markersize": 8}
            axis.plot([x], [high if above else low], clip_on=False, zorder=5, linestyle="none", **shape)
            left, right = axis.get_xlim()
            if not labels or x - labels[-1][0] > _LABEL_WIDTH * (right - left):
                labels.append((x, []))
            labels[-1][1].append(f"{point.quality:.3g}")
        text = {"textcoords": "offset points", "ha": "center", "va": "top" if above else "bottom", "fontsize": 7}
        text |= {"xytext": (0, -8 if above else 8), "rotation": 90, "color": "#444444"}
        for x, values in labels:
            axis.annotate(", ".join(values), (x, high if above else low), **text)


def _by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    methods: dict[str, list[Point]] = {}
    for point in points:
        methods.setdefault(point.method, []).append(point)
    return methods


def _draw_method(axis, method: str, points: Sequence[Point], cost: str, colour: str | None = None) -> None:
    """One curve, with thin bars where intervals are known."""
    kind = points[0].kind
    points = sorted(points, key=lambda p: getattr(p, cost))
    x, y = [getattr(p, cost) for p in points], [p.quality for p in points]
    if kind == "dense":
        axis.axhline(y[0], color="black", linewidth=0.7, linestyle=(0, (1, 3)))
        axis.plot(x, y, "*", color="black", markersize=13, linestyle="none", label="dense", zorder=4)
        return
    expansion = next((name for name in _COLOURS if re.search(rf"\b{name}\b", method)), None)
    colour = colour or _RIVALS.get(kind) or _COLOURS.get(expansion, "#555555")
    shape, line = _SHAPES.get(kind, _OTHER)
    if "=" in method:  # A variation of the method beside it.
        shape, line = "P", "-."
    filled = kind != "grid pooling"
    known = [(a, p) for a, p in zip(x, points, strict=True) if p.interval is not None]
    for a, p in known:
        axis.plot([a, a], p.interval, color=colour, linewidth=1, alpha=0.45, zorder=2)
    axis.plot(
        x,
        y,
        line,
        marker=shape,
        color=colour,
        markersize=6,
        linewidth=1.2,
        label=method,
        zorder=3,
        markerfacecolor=colour if filled else "white",
    )
