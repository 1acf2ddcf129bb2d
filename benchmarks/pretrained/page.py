"""The page docs/pretrained.md: tables, and one plot for each checkpoint."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection
from itertools import product
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import shrink
from hf_tokaccel.results.marked import write_marked
from hf_tokaccel.results.report import Where, markdown_table

from .fronts import error_at
from .methods import METHODS
from .subject import CHOSEN_ON, WHEEL_NAME

SPEEDS = (1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.5)
SHARES = (0.80, 0.67, 0.57, 0.50, 0.40)  # of the blocks' FLOPs
TITLES = {
    "blocks": "At equal shares of the blocks' FLOPs",
    "gflops": "At equal GFLOPs of the backbone",
    "time": "At equal measured time",
}
PREFIX = "pretrained-"
# Set before anything here was measured, for the wheel's backbone: mean error of the features at a share of its blocks.
AIMS = {0.67: 0.010, 0.57: 0.017, 0.50: 0.030, 0.40: 0.050}
MERGING = ("token merging", "token merging, change added")
CHEAP = ("lower resolution", "released", "released, searched")
HALF_FROM = 1.7  # times as cheap, from which on adaptive clusters are to lose half of what Token Merging loses


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


def adaptive_of(result: dict) -> list[str]:
    return [method for method in methods_of(result) if method.startswith("adaptive")]


def among(result: dict, photographs: Collection[str]) -> dict:
    """The result on some of its photographs."""
    places = [n for n, name in enumerate(result["photographs"]) if name in photographs]
    kinds = [kind for kind in ("features", "saliency", "cosine") if kind in result["rows"][0]]
    rows = [row | {kind: [row[kind][n] for n in places] for kind in kinds} for row in result["rows"]]
    return result | {"photographs": [result["photographs"][n] for n in places], "rows": rows}


def aims_table(result: dict) -> str:
    """Mean errors of the features beside what was to be reached, misses in words."""
    lines = [["aim", *(f"{aim:.3f}" for aim in AIMS.values())]]
    for method in [*adaptive_of(result), *(m for m in MERGING if m in methods_of(result))]:
        cells = []
        for share, aim in AIMS.items():
            found = at(result, method, "blocks", "features", 1 / share)
            verdict = "" if found is None or not method.startswith("adaptive") else _verdict(found[0], aim)
            cells.append("-" if found is None else f"{found[0]:.4f}{verdict}")
        lines.append([method, *cells])
    return markdown_table(["mean error of the features", *(f"{share:.2f}" for share in AIMS)], lines)


def _verdict(error: float, aim: float) -> str:
    return ", met" if error <= aim else ", missed"


def against_table(result: dict, axis: str) -> str:
    """Errors of adaptive clusters over those of rivals; what misses its aim is in bold."""
    rivals = {"the best of lower resolution and released": CHEAP} | {m: (m,) for m in MERGING}
    lines = []
    for method, (name, members) in product(adaptive_of(result), rivals.items()):
        cells = []
        for speed in SPEEDS:
            ours = at(result, method, axis, "features", speed)
            theirs = [x[0] for m in members if (x := at(result, m, axis, "features", speed))]
            if ours is None or not theirs:
                cells.append("-")
                continue
            ratio = ours[0] / min(theirs)
            most = 0.2 if members == CHEAP else 1.0 if speed < HALF_FROM else 0.5
            cells.append(f"{ratio:.2f}" if ratio <= most else f"**{ratio:.2f}**")
        lines.append([method, name, *cells])
    return markdown_table(["error of", "over that of", *(f"{speed:g}x" for speed in SPEEDS)], lines, names=2)


def aims(result: dict) -> list[str]:
    """The section about what was to be reached: on the wheel's backbone only, which the aims were set for."""
    if result["checkpoint"] != WHEEL_NAME:
        return []
    ten, eight = len(result["photographs"]), among(result, CHOSEN_ON)
    texts = [
        "### Against the aims",
        "Columns are shares of the blocks' FLOPs, as below. The aims were set before this was measured, from trials "
        "on eight of the photographs. Token merging has no aim; it is here to be beaten.",
        f"On all {ten} photographs:",
        aims_table(result),
    ]
    if len(eight["photographs"]) not in (0, ten):
        texts += [f"On the {len(eight['photographs'])} that the trials had:", aims_table(eight)]
    texts.append(
        "Mean error of adaptive clusters over that of a rival, at equal cost. The aims: at most 0.2 of the better one "
        f"of lower resolution and released; of token merging at most 1, and from {HALF_FROM:g}x on 0.5. Bold is what "
        "misses its aim; above 1 the rival wins."
    )
    for axis in ("gflops", "time"):
        texts += [f"{TITLES[axis]}:", against_table(result, axis)]
    return texts


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
    texts += aims(result)
    for axis, title in TITLES.items():
        texts.append(f"### {title}")
        for kind, what in kinds:
            texts += [f"{what[0].upper()}{what[1:]}:", error_table(result, axis, kind)]
    texts += ["### Rows", rows_table(result)]
    texts += [f"{note[0].upper()}{note[1:]}." for note in result["notes"]]
    measured = {row["of"] for row in result["rows"]}
    missing = [method.__name__.replace("_", " ") for method in METHODS if method.__name__ not in measured]
    if missing:
        texts.append(f"Not in this run: {', '.join(missing)}.")
    environment = result["environment"]
    where = Where.of(environment, bool(environment["changed"]))
    rounds = f"{result['rounds']} timed rounds" if "rounds" in result else "not timed"
    texts.append("; ".join(filter(None, [where.device, where.versions, where.commit, rounds])) + ".")
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
