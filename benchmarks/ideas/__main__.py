"""Changes of the method that were tried: distance to the dense model, against the package at equal GFLOPs.

python -m benchmarks.ideas                writes benchmarks/results/ideas-*.json and the table of docs/method_search.md
python -m benchmarks.ideas merging        where and by what Token Merging merges, on a real checkpoint; ten minutes
python -m benchmarks.ideas tables         the tables anew
python -m benchmarks.ideas --images 8     a quick look; writes nothing

Depth: mean relative difference; segmentation: 1 - mIoU between the two predictions; training scenes, no labels. Each
idea runs at several schedules. Its difference is divided by that of the package's own method (`expansion="delta"`,
`similarity_on="normalized"`) at the same GFLOPs, interpolated between its best schedules in the logarithm. Below 1 is
better than the package.
"""

from __future__ import annotations

import argparse
import json
import math
from statistics import median
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import hf_tokaccel.clustering.tiling as tiling
from benchmarks.common import RESULTS, ROOT, save, stamp
from benchmarks.pretrained.subject import load_wheel
from benchmarks.tune import load, training_images
from hf_tokaccel.measure.agreement import Agreement, Reading, read_output
from hf_tokaccel.measure.flops import gflops_of_shape
from hf_tokaccel.results.marked import write_marked
from hf_tokaccel.results.report import Where, markdown_table
from hf_tokaccel.rivals.merging import merge_in_layers

from . import merging
from .track import Idea, Merging, run_idea

TASKS = ("depth", "segmentation")
PATHS = ["hf_tokaccel", "benchmarks/ideas"]
DEPTH = 12  # blocks of the reference models
PAGE = ROOT / "docs" / "method_search.md"
Steps = tuple[tuple[int | None, int], ...]  # (side of the cluster grid or None, blocks)
SAME = (((None, 2), (14, 10)), ((None, 3), (12, 9)), ((None, 3), (14, 9)), ((None, 4), (10, 8)))
OWN = [
    ((None, a), (g, DEPTH - a)) for a in (1, 2, 3, 4, 5, 6) for g in (8, 10, 12, 14, 16) if g - 2 * a in range(2, 13)
]


def _schedule(steps: Steps) -> tuple:
    grids = [None if side is None else (side, side) for side, count in steps for _ in range(count)]
    assert len(grids) == DEPTH, steps
    return tuple(grids)


def _everywhere(**fields) -> list[Idea]:
    return [Idea(_schedule(steps), **fields) for steps in SAME]


def _scheduled(*schedules: Steps, **fields) -> list[Idea]:
    return [Idea(_schedule(steps), **fields) for steps in schedules]


_LAST = [[((None, a), (g, DEPTH - a - n), (None, n)) for a, g in ((2, 14), (3, 12), (3, 14), (4, 10))] for n in (1, 2)]
_MIDDLE = [((None, 2), (g, 4), (None, 1), (g, 5)) for g in (10, 12, 14)]
_THIRD = [((None, 2), (g, 2), (None, 1), (g, 2), (None, 1), (g, 4)) for g in (8, 10, 12)]
_SIZES = ((14, 8), (16, 10), (12, 8), (14, 10))  # fine, coarse
_MERGED = (10, 16, 22, 28, 34)
IDEAS: dict[str, list[Idea] | list[Merging]] = {
    "the last block at full resolution": _scheduled(*_LAST[0]),
    "the last two blocks at full resolution": _scheduled(*_LAST[1]),
    "one block in the middle at full resolution": _scheduled(*_MIDDLE),
    "the same, with the first plan again": _scheduled(*_MIDDLE, same_plan=True),
    "every third block at full resolution": _scheduled(*_THIRD),
    "two grids, coarse for the last five blocks": _scheduled(*(((None, 2), (f, 5), (c, 5)) for f, c in _SIZES)),
    "two grids, coarse for the last three blocks": _scheduled(*(((None, 2), (f, 7), (c, 3)) for f, c in _SIZES)),
    "two grids, coarse in the middle": _scheduled(*(((None, 3), (f, 2), (c, 4), (f, 3)) for f, c in _SIZES)),
    "temperature 1 over the mean squared distance": _everywhere(sharpness=1.0),
    "temperature 2": _everywhere(sharpness=2.0),
    "temperature 8": _everywhere(sharpness=8.0),
    "temperature 16": _everywhere(sharpness=16.0),
    "tokens compared in the stream": _everywhere(similarity_on="tokens"),
    "soft, temperature 1": _everywhere(detail=0.0, sharpness=1.0),
    "soft": _everywhere(detail=0.0),
    "detail times 0.85": _everywhere(detail=0.85),
    "detail times 1.2": _everywhere(detail=1.2),
    "detail grows with its clusters": _everywhere(detail="growth"),
    "change times 1.1": _everywhere(gain=1.1),
    "centroids as long as their tokens": _everywhere(keep_length=True),
    "position compared too, weight 0.1": _everywhere(position=0.1),
    "position compared too, weight 0.3": _everywhere(position=0.3),
    "4 neighbors": _everywhere(neighbors=4),
    "all neighbors": _everywhere(neighbors=-1),
    "window 3": _everywhere(window=3),
    "window 7": _everywhere(window=7),
    "2 iterations": _everywhere(iterations=2),
    "10 iterations": _everywhere(iterations=10),
    "grid pooling": _everywhere(iterations=0),
    "token merging, copied back": [Merging(count) for count in _MERGED],
    "token merging, detail added": [Merging(count, "delta") for count in _MERGED],
}


def difference(model: nn.Module, batches: list[Tensor], dense: list[Reading]) -> float:
    total = Agreement()
    with torch.inference_mode():
        for batch, reading in zip(batches, dense, strict=True):
            total.add(read_output(model(pixel_values=batch)), reading)
    return 1 - total.value


def measure(task: str, images: int) -> dict:
    loaded = load(task, 1)
    size = tuple(loaded.task.encode(loaded.dataset.samples[0])["pixel_values"].shape[-2:])
    batches = list(training_images(loaded, images, size).split(8))
    with torch.inference_mode():
        dense = [read_output(loaded.dense(pixel_values=batch)) for batch in batches]
    total, costs, found = gflops_of_shape(loaded.dense, size), {}, {}
    ideas = {"the package": _scheduled(*OWN), **IDEAS}
    for name, members in track(ideas.items(), description=task, console=Console(stderr=True)):
        found[name] = []
        for idea in members:
            if isinstance(idea, Merging):
                model = merge_in_layers(loaded.dense, idea.per_layer, idea.expansion)
                key, sharpness = idea, tiling.SHARPNESS
            else:
                # Whatever else is varied changes no product's size worth a count.
                key, sharpness = (idea.grids, idea.iterations, idea.same_plan), idea.sharpness
                model = run_idea(loaded.dense, idea)
            if key not in costs:
                costs[key] = gflops_of_shape(model, size) / total
            with mock.patch.object(tiling, "SHARPNESS", sharpness):
                lost = difference(model, batches, dense)
            found[name].append({"gflops_ratio": costs[key], "difference": lost})
    return found


def ratios(found: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Differences of each idea over those of the package at the same GFLOPs."""
    best, front = math.inf, []
    for row in sorted(found["the package"], key=lambda row: row["gflops_ratio"]):
        if row["difference"] < best:
            best = row["difference"]
            front.append((row["gflops_ratio"], math.log(best)))

    def at(cost: float) -> float:
        after = next((i for i, (x, _) in enumerate(front) if x >= cost), len(front) - 1)
        (x0, y0), (x1, y1) = front[max(after - 1, 0)], front[after]
        share = 0.0 if x1 == x0 else min(max((cost - x0) / (x1 - x0), 0), 1)
        return math.exp(y0 + share * (y1 - y0))

    return {
        name: [row["difference"] / at(row["gflops_ratio"]) for row in rows]
        for name, rows in found.items()
        if name != "the package"
    }


def table(result: dict) -> str:
    tasks = {task: ratios(found) for task, found in result["tasks"].items()}
    base = {name: [] for name in tasks}
    for task, found in result["tasks"].items():
        # What the package itself has at the schedules that most ideas run at, which are not all its best.
        own = dict(zip(OWN, found["the package"], strict=True))
        base[task] = ratios({"the package": found["the package"], "own": [own[steps] for steps in SAME]})["own"]
    headings, lines = ["idea", *(text for task in tasks for text in (f"{task}, median", "worst to best"))], []
    rows = {"the package at the schedules of most ideas": base}
    rows |= {name: {task: tasks[task][name] for task in tasks} for name in IDEAS}
    for name, values in rows.items():
        cells = [(f"{median(v):.2f}", f"{max(v):.2f} to {min(v):.2f}") for v in values.values()]
        lines.append([name, *(cell for pair in cells for cell in pair)])
    where = Where.of(result, changed=False)
    foot = [result["machine"]["device"], where.versions, where.commit, "`python -m benchmarks.ideas`"]
    return f"{markdown_table(headings, lines)}\n\n{result['images']} training scenes. {'; '.join(foot)}."


def write_page() -> None:
    tables = {"ideas": table, "merging": merging.table}
    found = {name: max(RESULTS.glob(f"{name}-*.json")) for name in tables}
    write_marked(PAGE, {name: tables[name](json.loads(path.read_text())) for name, path in found.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("run", "merging", "tables"), default="run")
    parser.add_argument("--images", type=int, help="training scenes (default: 12)")
    args = parser.parse_args()
    name = f"cpu-torch{torch.__version__.split('+')[0]}"
    if args.action == "run":
        result = stamp(PATHS) | {"images": args.images or 12}
        result["tasks"] = {task: measure(task, result["images"]) for task in TASKS}
        Console(width=160).print(table(result), markup=False)
        if args.images is not None:
            return
        save(f"ideas-{name}", result)
    if args.action == "merging":
        save(f"merging-{name}", merging.measure(load_wheel()))
    write_page()


if __name__ == "__main__":
    main()
