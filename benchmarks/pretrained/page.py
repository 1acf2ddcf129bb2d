"""The page docs/pretrained.md: tables, and one plot for each checkpoint."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import shrink
from hf_tokaccel.results.marked import write_marked
from hf_tokaccel.results.report import Where, markdown_table

from .fronts import error_at

SPEEDS = (1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.5)
SHARES = (0.80, 0.67, 0.57, 0.50, 0.40)  # of the blocks' FLOPs
TITLES = {
    "blocks": "At equal shares of the blocks' FLOPs",
    "gflops": "At equal GFLOPs of the backbone",
    "time": "At equal measured time",
}
PREFIX = "pretrained-"


def load_results(folder: Path) -> dict[str, dict]:
    """Results by the name of their file, in order."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob(f"{PREFIX}*.json"))}


def methods_of(result: dict) -> list[str]:
    """Names of the methods, in the order in which they were measured."""
    return list(dict.fromkeys(row["method"] for row in result["rows"]))


def at(result: dict, method: str, axis: str, kind: str, wanted: float) -> tuple[float, float] | None:
    """Mean and median over photographs of a method's error where it is so many times as cheap as dense.

    Args:
        result: of a run.
        method: of its rows.
        axis: `"blocks"`, `"gflops"` or `"time"`.
        kind: `"features"`, `"saliency"`, or `"cosine"`, of which the distance to 1 is meant.
        wanted: times as cheap.
    """
    rows = [row for row in result["rows"] if row["method"] == method and axis in row["cheapness"]]
    cheapness = [row["cheapness"][axis] for row in rows]
    found = []
    for summarise in (statistics.fmean, statistics.median):
        values = [summarise([1 - v if kind == "cosine" else v for v in row[kind]]) for row in rows]
        found.append(error_at(cheapness, values, wanted))
    return None if None in found else (found[0], found[1])


def error_table(result: dict, axis: str, kind: str) -> str:
    """Methods by cheapness, the least mean of each column in bold."""
    columns = [1 / share for share in SHARES] if axis == "blocks" else SPEEDS
    names = [f"{share:.2f}" for share in SHARES] if axis == "blocks" else [f"{speed:g}x" for speed in SPEEDS]
    cells = {m: [at(result, m, axis, kind, wanted) for wanted in columns] for m in methods_of(result)}
    best = [min((row[n][0] for row in cells.values() if row[n]), default=math.nan) for n in range(len(columns))]
    lines = [[m, *(_cell(v, least, kind) for v, least in zip(row, best, strict=True))] for m, row in cells.items()]
    return markdown_table(["method", *names], lines)


def _cell(values: tuple[float, float] | None, least: float, kind: str) -> str:
    if values is None:
        return "-"
    mean, median = values
    if kind == "cosine":
        text, middle = f"{1 - mean:.4f}", f"{1 - median:.4f}"
    else:
        text, middle = f"{mean:.2g}", f"{median:.2g}"
    return f"{f'**{text}**' if mean <= least else text} ({middle})"


def rows_table(result: dict) -> str:
    """Every measured row of the methods' fronts in time."""
    lines = []
    for row in result["rows"]:
        if "time" not in row["cheapness"]:
            continue
        cheap = row["cheapness"]
        lines.append(
            [
                row["method"],
                row["name"],
                f"{row['share']:.3f}",
                f"{row['gflops']:.2f}",
                f"{cheap['gflops']:.2f}x",
                f"{cheap['time']:.2f}x",
                f"{statistics.fmean(row['features']):.4f}",
                f"{statistics.median(row['features']):.4f}",
            ]
        )
    headings = ["method", "setting", "blocks' share", "GFLOPs", "fewer", "speed", "error, mean", "median"]
    return markdown_table(headings, lines, names=2)


def section(name: str, result: dict) -> str:
    """Everything about one checkpoint as Markdown."""
    height, width = result["size"]
    texts = [
        f"## {result['checkpoint']}",
        f"![Error of features against GFLOPs and time](pretrained/{name.removeprefix(PREFIX)}.png)",
        f"{len(result['photographs'])} photographs ({', '.join(result['photographs'])}), centre squares at "
        f"{height} x {width}. The backbone takes {result['gflops']:.1f} GFLOPs, {result['blocks gflops']:.1f} of them "
        "in its blocks.",
    ]
    kinds = [("features", "error of the last layer's patch features, mean (median) over photographs")]
    if "saliency" in result["rows"][0]:
        kinds.append(("saliency", "error of the saliency map, mean (median) over photographs"))
    kinds.append(("cosine", "cosine of the features with the dense ones, mean (median) over photographs"))
    for axis, title in TITLES.items():
        texts.append(f"### {title}")
        for kind, what in kinds if axis != "blocks" else kinds[:1]:
            texts += [f"{what[0].upper()}{what[1:]}:", error_table(result, axis, kind)]
    texts += ["### Rows", rows_table(result)]
    texts += [f"{note[0].upper()}{note[1:]}." for note in result["notes"]]
    environment = result["environment"]
    where = Where.of(environment, bool(environment["changed"]))
    texts.append(
        "; ".join(filter(None, [where.device, where.versions, where.commit, f"{result['rounds']} rounds"])) + "."
    )
    return "\n\n".join(texts)


def draw(result: dict, path: Path) -> Path:
    """Mean error of the features of each method's front against GFLOPs and against time."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, label in zip(axes, ("gflops", "time"), ("times fewer GFLOPs", "times as fast"), strict=True):
        for number, method in enumerate(methods_of(result)):
            points = [(x / 100, at(result, method, name, "features", x / 100)) for x in range(115, 281, 5)]
            points = [(x, y[0]) for x, y in points if y]
            style = "-" if method.startswith("adaptive") else "--"
            axis.plot(*zip(*points, strict=True) if points else ((), ()), style, color=f"C{number % 10}", label=method)
        axis.set(xlabel=label, yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("error of the features")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    shrink(path)
    return path


def write_page(results: Path, folder: Path) -> Path:
    """The tables between the marks of pretrained.md, and the plots beside it; the text around them stays."""
    loaded = load_results(results)
    for name, result in loaded.items():
        draw(result, folder / "pretrained" / f"{name.removeprefix(PREFIX)}.png")
    text = "\n\n".join(section(name, result) for name, result in loaded.items()) or "No results yet."
    write_marked(folder / "pretrained.md", {"pretrained": text}, "A real checkpoint as the judge")
    return folder / "pretrained.md"
