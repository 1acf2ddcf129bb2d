"""Tables and plots of the results, on the terminal, on docs/quality.md, and a short one for the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.common import shrink
from hf_tokaccel.results.marked import write_marked
from hf_tokaccel.results.pareto import Plot, Point, draw_pareto
from hf_tokaccel.results.report import Where, markdown_table

from .claim import TARGET
from .methods import METHODS

_SHORT_SPEEDS = (1.3, 1.6, 2.0, 2.5)
_COLOURS = {
    "ours": "#1a9850",
    "released": "#1d6fd1",
    "released, full decoder": "#7db4e8",
    "nearest logits": "#c77dff",
    "lower resolution": "#555555",
    "grid pooling": "#e07b00",
    "token merging": "#8338ec",
    "token merging, delta": "#b5179e",
    "random regions": "#b08968",
}
# Methods that are of one kind each.
_KINDS = ("dense", "lower resolution", "grid pooling", "token merging", "token merging, delta")
_AXES = {
    "speed": "At equal measured speed",
    "GFLOPs": "At equal GFLOPs",
    "difference": "Difference to the dense model's output, at equal measured speed",
    "backbone speed": "At equal measured speed of the backbone alone",
    "backbone GFLOPs": "At equal GFLOPs of the backbone alone",
}
_UNMEASURED = "-"


def load_results(folder: Path) -> dict[Path, dict]:
    """Parts by model, of every result file."""
    return {path: json.loads(path.read_text())["models"] for path in sorted(folder.glob("quality-*-torch*.json"))}


def _number(value: float | None, digits: int = 2) -> str:
    return _UNMEASURED if value is None else f"{value:.{digits}f}"


def _with_interval(stated: dict | None, digits: int = 2, factor: float = 1, unit: str = "") -> str:
    if stated is None:
        return _UNMEASURED
    value = f"{factor * stated['value']:.{digits}f}{unit}"
    if stated["interval"] is None:
        return value
    low, high = (f"{factor * end:.{digits}f}" for end in stated["interval"])
    return f"{value} ({low} to {high})"


def _reduction(line: dict) -> str:
    if line["reduction"] is not None:
        return _with_interval(line["reduction"], 0, 100, " %")
    released = line["loss"].get("released")
    if released is None or line["loss"].get("ours") is None:
        return _UNMEASURED
    return "released loses nothing measurable" + (", ours more" if _loses_more(line) else "")


def _loses_more(line: dict) -> bool:
    """Whether ours is behind released by more than the interval."""
    gain = line["gain"]
    return gain is not None and gain["interval"] is not None and gain["interval"][1] < 0


def _answer(value: bool | None) -> str:
    return {None: _UNMEASURED, True: "yes", False: "no"}[value]


def _smaller_is_better(line: dict) -> str:
    if not line["lower resolution better"]:
        return _answer(line["lower resolution better"])
    ends = line["lower resolution minus ours"]["interval"]
    return "yes" if ends is not None and ends[1] < 0 else "yes, within the interval"


def claim_table(part: dict, axis: str) -> str:
    """Losses at equal cost, and whether ours is where it should be."""
    lines = part["claims"][axis]
    names = list(lines[0]["loss"])
    plain = [name for name in names if name not in ("released", "ours")]
    headings = [
        "times as cheap" if "GFLOPs" in axis else "times as fast",
        "released",
        *plain,
        "ours",
        "less loss than released",
        f"{100 * TARGET:.0f} % less",
        "lower resolution better",
    ]
    rows = [
        [
            f"{line['speed']:.1f}",
            _with_interval(line["loss"]["released"]),
            *(_number(line["loss"][name] and line["loss"][name]["value"]) for name in plain),
            _with_interval(line["loss"]["ours"]),
            _reduction(line),
            _answer(line["met"]),
            _smaller_is_better(line),
        ]
        for line in lines
        if any(line["loss"].values())
    ]
    return markdown_table(headings, rows)


def _speeds(lines: Sequence[dict]) -> str:
    return ", ".join(f"{line['speed']:.1f}" for line in lines)


def verdict(part: dict, axis: str) -> str:
    """What the table shows, in sentences; failures are named."""
    lines = part["claims"][axis]
    judged = [line for line in lines if line["met"] is not None]
    missed = [line for line in judged if not line["met"]]
    both = [line for line in lines if line["loss"].get("released") and line["loss"].get("ours")]
    free = [line for line in both if line["reduction"] is None]
    smaller = [line for line in lines if line["lower resolution better"]]
    compared = [line for line in lines if line["lower resolution better"] is not None]
    unreached = [line for line in lines if line["loss"]["ours"] is None]
    only_others = [line for line in unreached if any(line["loss"].values())]
    target = f"{100 * TARGET:.0f} % less loss"
    said = []
    if judged:
        held = f"{len(judged) - len(missed)} of {len(judged)} ratios"
        said.append(f"{target} than released holds at {held}" + (f", not at {_speeds(missed)}" if missed else ""))
    if free:
        behind = [line for line in free if _loses_more(line)]
        more = f", ours more than it at {_speeds(behind)}" if behind else ""
        said.append(f"released loses nothing measurable at {_speeds(free)}{more}")
    if compared:
        where = f"better at {_speeds(smaller)}" if smaller else "nowhere better"
        said.append(f"lower resolution is {where} of the {len(compared)} that both reach")
    if unreached:
        others = f" (another method does at {_speeds(only_others)})" if only_others else ""
        said.append(f"ours does not reach {_speeds(unreached)}{others}")
    return ". ".join(text[0].upper() + text[1:] for text in said) + "."


def rows_table(part: dict) -> str:
    """The settings behind the curves, on the test scenes."""
    dense = part["rows"][0]
    has_backbone = "backbone speed" in dense["cheapness"]
    headings = ["setting", f"{part['metric']['name']}", "95 %", "loss", "GFLOPs", "ms per image", "speed"]
    headings += ["backbone speed"] * has_backbone
    lines = []
    for row in part["rows"]:
        low, high = row["quality"]["interval"]
        cells = [
            row["name"],
            f"{row['quality']['value']:.4f}",
            f"{low:.3f} to {high:.3f}",
            _number(row["loss"]["value"]),
            f"{row['gflops']:.2f}",
            f"{1000 * row['seconds']['speed']['median'] / part['options']['batch_size']:.1f}",
            f"{row['cheapness']['speed']:.2f}x",
        ]
        lines.append(cells + [f"{row['cheapness']['backbone speed']:.2f}x" for _ in range(has_backbone)])
    return markdown_table(headings, lines)


def changes_table(part: dict) -> str:
    lines = [line for line in part["changes"] if any(v is not None for v in line["loss"].values())]
    names = list(part["changes"][0]["loss"])
    rows = [[f"{line['speed']:.1f}", *(_number(line["loss"][name]) for name in names)] for line in lines]
    return markdown_table(["times fewer GFLOPs", *names], rows)


def _where(part: dict) -> str:
    where, options = Where.of(part["environment"], bool(part["environment"]["changed"])), part["options"]
    run = [where.device, where.threads, f"batch {options['batch_size']}", options["dtype"]]
    run.append(f"{options['rounds']} rounds")
    return (
        f"{'; '.join(filter(None, [', '.join(run), where.versions, where.commit]))}. Sweep of {len(part['sweep'])} "
        f"settings on {part['scenes']['validation']}; test on {part['scenes']['test']}; input "
        f"{'x'.join(map(str, part['input_size']))}."
    )


def section(name: str, part: dict, picture: str | None = None) -> str:
    """Everything about one model as Markdown."""
    metric = part["metric"]
    arrow = "↑" if metric["more is better"] else "↓"
    texts = [f"## {name}: {metric['name']} {arrow}", *([picture] if picture else [])]
    for axis in part["claims"]:
        texts += [f"### {name}. {_AXES[axis]}", claim_table(part, axis), verdict(part, axis)]
    texts += [
        f"### {name}. What each change brings",
        "Differences to the dense model's output on the validation scenes, in hundredths, at equal GFLOPs.",
        changes_table(part),
        f"### {name}. The rows behind the curves",
        rows_table(part),
        *(f"{note.rstrip('.')}." for note in part["notes"]),
        _where(part),
    ]
    return "\n\n".join(texts)


def plot_of(name: str, part: dict, backbone: bool = False) -> Plot:
    """Quality of the test rows against GFLOPs and speed, of the model or of its backbone."""
    points = []
    by_kind = {kind: method for method, kinds in METHODS.items() for kind in kinds}
    axis, gflops = ("backbone speed", "backbone_gflops") if backbone else ("speed", "gflops")
    for row in part["rows"]:
        method = by_kind.get(row["kind"], "dense")
        points.append(
            Point(
                method=method,
                kind=method if method in _KINDS else "clusters",
                gflops=row[gflops],
                speedup=row["cheapness"][axis],
                quality=row["quality"]["value"],
            )
        )
    metric = part["metric"]
    arrow = "↑" if metric["more is better"] else "↓"
    title = f"{name}, {part['scenes']['test']}" + (", cost of the backbone alone" if backbone else "")
    return Plot(title, f"{metric['name']} {arrow}", metric["more is better"], points, _COLOURS)


def _pictures(name: str, part: dict, path: Path) -> dict[str, Plot]:
    """Plots by file name: one model may be in the files of several machines."""
    device = path.name.removeprefix("quality-").rsplit("-torch", 1)[0]
    stem = name if device == "cpu" else f"{name}-{device}"
    plots = {f"{stem}.png": plot_of(name, part)}
    if "backbone speed" in part["rows"][0]["cheapness"]:
        plots[f"{stem}-backbone.png"] = plot_of(name, part, backbone=True)
    return plots


def write_plots(results: Path, page: Path) -> list[Path]:
    """PNG files in the folder `quality` beside the page."""
    written = []
    for path, parts in load_results(results).items():
        for name, part in parts.items():
            for file, plot in _pictures(name, part, path).items():
                (page / "quality").mkdir(parents=True, exist_ok=True)
                drawn = draw_pareto(plot, page / "quality" / file)
                shrink(drawn)
                written.append(drawn)
    return written


def tables(results: Path) -> str:
    """All sections."""
    texts = []
    for path, parts in load_results(results).items():
        for name, part in parts.items():
            files = _pictures(name, part, path)
            pictures = [f"![{name}: quality against GFLOPs and speed](quality/{file})" for file in files]
            texts.append(section(name, part, "\n\n".join(pictures)))
    return "\n\n".join(texts) or "No results yet."


def write_page(results: Path, folder: Path) -> Path:
    """The tables between the marks of quality.md; the text around them stays."""
    page = folder / "quality.md"
    write_marked(page, {"quality": tables(results)}, "Quality at equal speed")
    return page


def short_table(parts: Mapping[str, dict], speeds: Sequence[float] = _SHORT_SPEEDS, axis: str = "speed") -> str:
    """The claim in few lines, for the README: models by name as in a result file."""
    every = ("released", "nearest logits", "lower resolution", "grid pooling", "token merging", "token merging, delta")
    rivals = [m for m in every if any(m in line["loss"] for p in parts.values() for line in p["claims"][axis])]
    headings = ["model, metric", "times as fast", *rivals, "ours", "less loss than released"]
    lines = []
    for name, part in parts.items():
        for line in part["claims"][axis]:
            if line["speed"] not in speeds or line["loss"]["ours"] is None:
                continue
            values = [_number((line["loss"].get(m) or {}).get("value")) for m in rivals]
            ours = _with_interval(line["loss"]["ours"])
            label = f"{name}, {part['metric']['name']}"
            lines.append([label, f"{line['speed']:.1f}", *values, ours, _reduction(line)])
    note = (
        "Loss against the dense model in hundredths of the metric, on test scenes, interpolated between measured "
        "settings, with 95 % intervals over images."
    )
    return f"{markdown_table(headings, lines)}\n\n{note}"


def show(name: str, part: dict, console: Console) -> None:
    console.print(Markdown(section(name, part)))
    console.print(f"{name}: {part['wall_seconds']:.0f} s")
