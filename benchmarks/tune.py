"""Settings found by `tune` on unlabelled training scenes against hand-picked ones, on labelled test scenes.

python -m benchmarks.tune                            all three reference models; writes benchmarks/results/tune-*.json
python -m benchmarks.tune --only depth --images 8 --limit 20     quick look, writes nothing

Each group of hand-picked settings (shares of blocks and tokens of the paper or near it, in every expansion) gives a
budget: the GFLOPs of its cheapest setting, to 1 %. The tuned setting must stay within, so that it wins at equal or
lower cost.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from benchmarks.common import save, stamp
from hf_tokaccel import TokenClusteringConfig, accelerate, tune
from hf_tokaccel.bench.measure import gflops_of_shape
from hf_tokaccel.evaluation.loop import evaluate_variants
from hf_tokaccel.evaluation.rivals import default_settings, group_name, setting_name
from hf_tokaccel.evaluation.script import Loaded
from hf_tokaccel.evaluation.scripts import build_parser, find_script
from hf_tokaccel.evaluation.task import Variant
from hf_tokaccel.scenes import SceneDataset

PATHS = ["hf_tokaccel", "benchmarks/tune.py"]
# The metric that decides, and whether more of it is better.
TASKS = {"depth": ("abs_rel", False), "segmentation": ("miou", True), "panoptic": ("pq", True)}


def load(task: str, limit: int) -> Loaded:
    arguments = build_parser(task, "tune").parse_args(["--limit", str(limit), "--cpu"])
    return find_script(task).load(arguments, torch.device("cpu"))


def training_images(loaded: Loaded, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Pixel values (n, 3, h, w) of training scenes; their labels are not read."""
    scenes = SceneDataset("train", count, size).__getitems__(range(count))
    samples = [{"image": scene["image"].permute(1, 2, 0).numpy()} for scene in scenes]
    return torch.stack([loaded.task.encode(sample)["pixel_values"] for sample in samples])


def compare(task: str, images: int, limit: int, batch_size: int, seed: int, console: Console) -> dict:
    loaded = load(task, limit)
    dense, metric = loaded.dense, TASKS[task][0]
    size = tuple(loaded.task.encode(loaded.dataset.samples[0])["pixel_values"].shape[-2:])
    total = gflops_of_shape(accelerate(dense, None), size)
    groups: dict[str, list[TokenClusteringConfig]] = {}
    for setting in default_settings(dense, size, loaded.task):
        groups.setdefault(group_name(setting), []).append(setting)
    pixel_values = training_images(loaded, images, size)
    rows = [{"group": "", "kind": "dense", "name": "dense", "accel": None, "gflops_ratio": 1.0}]
    for name, members in groups.items():
        costs = [gflops_of_shape(accelerate(dense, setting, size), size) / total for setting in members]
        start = time.perf_counter()
        # Expansions differ in a trifle, which shall not forbid the grid itself.
        share = max(cost for cost in costs if cost <= 1.01 * min(costs))
        result = tune(dense, pixel_values, gflops=share, batch_size=batch_size, seed=seed)
        seconds = time.perf_counter() - start
        console.print(f"{task}, {name}: {len(result.trials) - 1} settings in {seconds:.0f} s")
        for kind, setting, cost in [
            *(("hand-picked", setting, cost) for setting, cost in zip(members, costs, strict=True)),
            ("tuned", result.accel, result.chosen.gflops_ratio),
        ]:
            row = {"group": name, "kind": kind, "name": setting_name(setting), "accel": setting.to_dict()}
            rows.append(row | {"gflops_ratio": cost})
        rows[-1] |= {"agreement": result.chosen.agreement, "tried": len(result.trials) - 1, "seconds": seconds}
    models = [dense if row["accel"] is None else accelerate(dense, row["accel"], size) for row in rows]
    variants = [Variant(row["name"], model) for row, model in zip(rows, models, strict=True)]
    scores = evaluate_variants(
        variants, loaded.dataset.samples, loaded.task, Accelerator(cpu=True), batch_size=batch_size
    )
    for row, summary in zip(rows, loaded.task.summarise(scores.sums, scores.kept), strict=True):
        row["metrics"] = summary.metrics
    return {
        "metric": metric,
        "more is better": TASKS[task][1],
        "gflops": total,
        "rows": rows,
        "verdicts": verdicts(rows, task),
    }


def verdicts(rows: list[dict], task: str) -> list[dict]:
    """For each group whether the tuned setting beats those picked by hand: at its budget, and at any cost."""
    metric, more = TASKS[task]
    found = []
    for group in dict.fromkeys(row["group"] for row in rows if row["group"]):
        *picked, tuned = (row for row in rows if row["group"] == group)
        budget = 1.01 * min(row["gflops_ratio"] for row in picked)
        equal = [row["metrics"][metric] for row in picked if row["gflops_ratio"] <= budget]
        every = [row["metrics"][metric] for row in picked]
        verdict = {"group": group, "tuned": tuned["metrics"][metric]}
        for name, values in (("equal GFLOPs", equal), ("any GFLOPs", every)):
            best = max(values) if more else min(values)
            beats = verdict["tuned"] > best if more else verdict["tuned"] < best
            verdict[name] = {"best hand-picked": best, "tuned wins": beats}
        found.append(verdict)
    return found


def show(result: dict, console: Console) -> None:
    for task, part in result["tasks"].items():
        arrow = "↑" if part["more is better"] else "↓"
        table = Table(title=f"{task}, {part['gflops']:.2f} GFLOPs dense")
        for column in ("group", "setting", "of dense", f"{part['metric']} {arrow}"):
            table.add_column(column, justify="left" if column in ("group", "setting") else "right", overflow="fold")
        for row in part["rows"]:
            value = f"{row['metrics'][part['metric']]:.4f}"
            label = f"{row['kind']} {row['name']}" if row["group"] else "dense"
            style = "bold" if row["kind"] == "tuned" else None
            table.add_row(row["group"], label, f"{100 * row['gflops_ratio']:.1f} %", value, style=style)
        console.print(table)
        for name in ("equal GFLOPs", "any GFLOPs"):
            lost = [verdict["group"] for verdict in part["verdicts"] if not verdict[name]["tuned wins"]]
            console.print(f"{name}: tune {'does not win at ' + ', '.join(lost) if lost else 'wins everywhere'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(TASKS), help="one model; writes no result")
    parser.add_argument("--images", type=int, default=32, help="unlabelled training scenes")
    parser.add_argument("--limit", type=int, default=200, help="labelled test scenes")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console(width=150)
    result = stamp(PATHS) | {"images": args.images, "scenes": args.limit, "seed": args.seed, "tasks": {}}
    for task in [args.only] if args.only else TASKS:
        result["tasks"][task] = compare(task, args.images, args.limit, args.batch_size, args.seed, console)
    show(result, console)
    if args.only is None:
        name = f"tune-{result['machine']['device'].replace(' ', '-').lower()}-torch{torch.__version__.split('+')[0]}"
        console.print(str(save(name, json.loads(json.dumps(result)))))


if __name__ == "__main__":
    main()
