"""What was to be reached on a GPU, and what was: lines of a table from the records of `benchmarks.gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.launches import TARGETS

BLOCKS, AFTER = 24, 2  # of Segmenter-L, and how many of them "adaptive, half" leaves on all tokens
BATCH_8, BATCH_1, OF_THE_LAYERS = 1.6, 1.35, 0.9
LARGE = ("segmenter-l-640", "vit-l-518", "depth-anything-l-518", "dinov3-l-1024")
HALF = ("grid, bold", "adaptive, half")
Records = dict[str, dict[str, Any]]


def reached(records: Records) -> list[list[str]]:
    """Rows: what, to reach, reached, met, remark; of what has been measured or counted."""
    return [*_kernels(records), *_compiled(records), *_in_a_graph(records), *_of_the_layers(records), *_eager(records)]


def trusted(row: dict[str, Any]) -> float | None:
    """Milliseconds of a replay; none where it took longer than the call that it repeats, which nothing explains."""
    time = row.get("graph_ms")
    return time if time is not None and time <= 1.2 * row["ms"] else None


def is_launching(records: Records, title: str, name: str) -> bool:
    """Whether a row of a batch takes about as long as that of one image, so that the GPU waits for its launches."""
    case, _, batch = title.partition(", batch ")
    if batch == "1":
        return False
    one, many = (
        _result(records, f"model {case}, batch {count}").get("rows", {}).get(name, {}) for count in (1, batch)
    )
    return "row_ms" in one and "row_ms" in many and many["row_ms"] <= 1.1 * one["row_ms"]


def _met(value: bool) -> str:
    return "yes" if value else "**no**"


def _result(records: Records, step: str) -> Any:
    return (records.get(step) or {}).get("result") or {}


def _speed(rows: dict[str, dict], name: str, time) -> float | None:
    base, own = (time(rows[row]) if "ms" in rows.get(row, {}) else None for row in ("dense", name))
    return base / own if base and own else None


def counted() -> dict[str, dict[str, int]]:
    """What `benchmarks.launches --compiled` wrote, by method."""
    paths = sorted(RESULTS.glob("launches-*.json"))
    return json.loads(paths[-1].read_text(encoding="utf-8"))["kernels"] if paths else {}


def _kernels(records: Records) -> Iterator[list[str]]:
    of_one_round = {"grid": "", "adaptive": "adaptive, one round of half"}
    found, measured = counted(), _result(records, "kernels of the method ViT-L 640")
    for name, goals in TARGETS.items():
        if name not in found:
            continue
        for form, goal in zip(("eager", "compiled"), goals, strict=True):
            value, said = found[name][form], f"{found[name][form]} counted"
            if form == "eager" and "kernels" in measured.get(name, {}):
                said += f", {measured[name]['kernels'] + measured[name]['copies']} measured"
            one = found.get(of_one_round[name], {}).get(form)
            remark = f"{one} counted in one round, as advised below" if one else ""
            title = f"launches of the method, {name}, {form}, ViT-L at 640"
            yield [title, f"at most {goal}", said, _met(value <= goal), remark]


def _compiled(records: Records) -> Iterator[list[str]]:
    rows = _result(records, "compiled segmenter-l-640, batch 8, default").get("rows", {})
    speeds = {name: rows[name]["speedup"] for name in HALF if rows.get(name, {}).get("speedup")}
    if speeds:
        said = ", ".join(f"{name} {value:.2f}x (`{rows[name]['commit']}`)" for name, value in speeds.items())
        met = max(speeds.values()) >= BATCH_8
        yield ["Segmenter-L 640, half of the FLOPs, compiled, batch 8", f"{BATCH_8}x", said, _met(met), ""]


def _in_a_graph(records: Records) -> Iterator[list[str]]:
    rows = _result(records, "model segmenter-l-640, batch 1").get("rows", {})
    speed = _speed(rows, "adaptive, half", trusted)
    if speed:
        row = _result(records, "compiled segmenter-l-640, batch 1, reduce-overhead").get("rows", {}).get(HALF[1], {})
        remark = ""
        if row.get("speedup"):
            remark = "compiled with `reduce-overhead`, both sides: "
            remark += f"{row['row_speedup']:.2f}x in a row, {row['speedup']:.2f}x waited for"
        said = f"{HALF[1]} {speed:.2f}x"
        title = "Segmenter-L 640, half of the FLOPs, as a CUDA graph, batch 1"
        yield [title, f"{BATCH_1}x", said, _met(speed >= BATCH_1), remark]


def _of_the_layers(records: Records) -> Iterator[list[str]]:
    blocks = _result(records, "method ViT-L 640, batch 8")
    rows = _result(records, "model segmenter-l-640, batch 8").get("rows", {})
    speed = _speed(rows, HALF[1], lambda row: row["ms"])
    if speed and "graph_ms" in blocks.get("block on clusters", {}):
        saved = (BLOCKS - AFTER) * (blocks["block"]["graph_ms"] - blocks["block on clusters"]["graph_ms"])
        alone = rows["dense"]["ms"] / (rows["dense"]["ms"] - saved)
        said = f"{100 * speed / alone:.0f} %: {speed:.2f}x of {alone:.2f}x"
        remark = f"eager, {HALF[1]}; of the time of {BLOCKS - AFTER} blocks by themselves"
        if is_launching(records, "segmenter-l-640, batch 8", HALF[1]):
            remark += "; hardly longer than one image, so it waits for launches"
        title = "Segmenter-L 640, of what the layers alone allow, batch 8"
        yield [title, f"{100 * OF_THE_LAYERS:.0f} %", said, _met(speed / alone >= OF_THE_LAYERS), remark]


def _eager(records: Records) -> Iterator[list[str]]:
    best = {}
    for case in LARGE:
        rows = _result(records, f"model {case}, batch 1").get("rows", {})
        speeds = {name: _speed(rows, name, lambda row: row["ms"]) for name in rows if name.startswith("adaptive")}
        speeds = {name: value for name, value in speeds.items() if value}
        if speeds:
            name = max(speeds, key=speeds.__getitem__)
            best[case] = (speeds[name], name)
    if best:
        said = ", ".join(f"{case} {value:.2f}x" for case, (value, _) in best.items())
        title = "ViT-L from 518 on, eager, batch 1: never slower than dense"
        yield [title, "1x", said, _met(min(best.values())[0] >= 1), "the fastest adaptive row of each"]
