"""Settings found by `tune` on unlabelled training scenes against hand-picked ones, on labelled test scenes.

python -m benchmarks.tune                            all three reference models; writes benchmarks/results/tune-*.json
python -m benchmarks.tune --only depth --images 8 --limit 20     quick look, writes nothing

Each group of hand-picked settings (shares of blocks and tokens of the paper or near it, in every expansion) gives a
budget: the GFLOPs of its cheapest setting, to 1 %. The tuned setting must stay within, so that it wins at equal or
lower cost. The plainest rival is a row too: the dense model at the lower resolution whose GFLOPs are nearest to those
of the tuned setting.

`python -m benchmarks.readme` puts the verdicts into docs/settings.md.
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
from hf_tokaccel.evaluation.loop import evaluate_variants
from hf_tokaccel.evaluation.script import Loaded
from hf_tokaccel.evaluation.script import load as load_evaluation
from hf_tokaccel.evaluation.scripts import EVALUATIONS
from hf_tokaccel.measure.flops import gflops_of_shape
from hf_tokaccel.measure.variant import Variant
from hf_tokaccel.results.report import markdown_table
from hf_tokaccel.rivals.build import Subject, lower_resolution
from hf_tokaccel.rivals.settings import default_settings
from hf_tokaccel.scenes import SceneDataset
from hf_tokaccel.settings.naming import group_name, setting_name

PATHS = ["hf_tokaccel", "benchmarks/tune.py"]
# The metric that decides, and whether more of it is better.
TASKS = {"depth": ("abs_rel", False), "segmentation": ("miou", True), "panoptic": ("pq", True)}


def load(task: str, limit: int) -> Loaded:
    return load_evaluation(EVALUATIONS[task](limit=limit, cpu=True), torch.device("cpu"))


def training_images(loaded: Loaded, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Pixel values (n, 3, h, w) of training scenes; their labels are not read."""
    samples = SceneDataset("train", count, size, channels_last=True).__getitems__(range(count))
    return torch.stack([loaded.task.encode(sample)["pixel_values"] for sample in samples])


def compare(task: str, images: int, limit: int, batch_size: int, seed: int, console: Console) -> dict:
    loaded = load(task, limit)
    dense = loaded.dense
    size = tuple(loaded.task.encode(loaded.dataset.samples[0])["pixel_values"].shape[-2:])
    total = gflops_of_shape(accelerate(dense, None), size)
    groups: dict[str, list[TokenClusteringConfig]] = {}
    for setting in default_settings(dense, size, loaded.task):
        if setting.adaptive:  # They are recommended, not picked by hand.
            continue
        groups.setdefault(group_name(setting), []).append(setting)
    pixel_values, subject = training_images(loaded, images, size), Subject(dense, size)
    rows, variants, notes = [], [], []

    def add(group: str, kind: str, variant: Variant, cost: float, accel: dict | None = None, **said) -> None:
        row = {"group": group, "kind": kind, "name": variant.name, "accel": accel, "gflops_ratio": cost}
        rows.append(row | said)
        variants.append(variant)

    add("", "dense", Variant("dense", dense), 1.0)
    for name, members in groups.items():
        costs = [gflops_of_shape(accelerate(dense, setting, size), size) / total for setting in members]
        start = time.perf_counter()
        # Expansions differ in a trifle, which shall not forbid the grid itself.
        share = max(cost for cost in costs if cost <= 1.01 * min(costs))
        result = tune(dense, pixel_values, gflops=share, batch_size=batch_size, seed=seed)
        seconds = time.perf_counter() - start
        console.print(f"{task}, {name}: {len(result.trials) - 1} settings in {seconds:.0f} s")
        for setting, cost in zip(members, costs, strict=True):
            variant = Variant(setting_name(setting), accelerate(dense, setting, size))
            add(name, "hand-picked", variant, cost, setting.to_dict())
        tuned = Variant(setting_name(result.accel), accelerate(dense, result.accel, size))
        found = {"agreement": result.chosen.agreement, "tried": len(result.trials) - 1, "seconds": seconds}
        add(name, "tuned", tuned, result.chosen.gflops_ratio, result.accel.to_dict(), **found)
        try:
            lower = lower_resolution(subject, result.accel)
        except (ValueError, RuntimeError) as error:  # Models with a fixed input size raise either.
            notes.append(f"No lower resolution beside {name}: {error}")
        else:
            add(name, lower.kind, lower.variant, subject.gflops(lower) / total)
    scores = evaluate_variants(
        variants, loaded.dataset.samples, loaded.task, Accelerator(cpu=True), batch_size=batch_size
    )
    for row, summary in zip(rows, loaded.task.summarise(scores.sums, scores.kept), strict=True):
        row["metrics"] = summary.metrics
    return {
        "metric": TASKS[task][0],
        "more is better": TASKS[task][1],
        "gflops": total,
        "rows": rows,
        "verdicts": verdicts(rows, task),
        "notes": notes,
    }


def verdicts(rows: list[dict], task: str) -> list[dict]:
    """For each group whether the tuned setting beats those picked by hand, at its budget and at any, and a rival."""
    metric, more = TASKS[task]
    found = []
    for group in dict.fromkeys(row["group"] for row in rows if row["group"]):
        of = {
            kind: [row for row in rows if row["group"] == group and row["kind"] == kind]
            for kind in ("hand-picked", "tuned", "lower resolution")
        }
        picked, (tuned,) = of["hand-picked"], of["tuned"]
        budget = 1.01 * min(row["gflops_ratio"] for row in picked)
        against = {
            "equal GFLOPs": [row for row in picked if row["gflops_ratio"] <= budget],
            "any GFLOPs": picked,
            "lower resolution": of["lower resolution"],
        }
        verdict = {"group": group, "tuned": tuned["metrics"][metric], "gflops_ratio": tuned["gflops_ratio"]}
        for name, others in against.items():
            if others:
                best = (max if more else min)(others, key=lambda row: row["metrics"][metric])
                value = best["metrics"][metric]
                beats = verdict["tuned"] > value if more else verdict["tuned"] < value
                verdict[name] = {"best": value, "gflops_ratio": best["gflops_ratio"], "tuned wins": beats}
        found.append(verdict)
    return found


HEADINGS = ["model", "hand-picked group", "metric", "dense", "hand-picked, best", "tuned", "lower resolution", "best"]


def verdict_rows(result: dict) -> list[list[str]]:
    """Cells below `HEADINGS`: for each model and budget its metric, and the share of the dense GFLOPs in brackets."""

    def said(value: float, ratio: float) -> str:
        return f"{value:.4f} ({100 * ratio:.1f} %)"

    lines = []
    for task, part in result["tasks"].items():
        metric = f"{part['metric']} {'↑' if part['more is better'] else '↓'}"
        for verdict in part["verdicts"]:
            values = {"tuned": verdict["tuned"], "hand-picked": verdict["equal GFLOPs"]["best"]}
            if "lower resolution" in verdict:
                values["lower resolution"] = verdict["lower resolution"]["best"]
            best = (max if part["more is better"] else min)(values.values())
            picked, lower = verdict["equal GFLOPs"], verdict.get("lower resolution")
            lines.append(
                [
                    task,
                    verdict["group"],
                    metric,
                    f"{part['rows'][0]['metrics'][part['metric']]:.4f}",
                    said(picked["best"], picked["gflops_ratio"]),
                    said(verdict["tuned"], verdict["gflops_ratio"]),
                    said(lower["best"], lower["gflops_ratio"]) if lower else "",
                    " and ".join(name for name, value in values.items() if value == best),
                ]
            )
    return lines


def sentences(result: dict) -> list[str]:
    """Where a tuned setting loses."""
    said = []
    for task, part in result["tasks"].items():
        for name in ("equal GFLOPs", "any GFLOPs", "lower resolution"):
            known = [verdict for verdict in part["verdicts"] if name in verdict]
            lost = [verdict["group"] for verdict in known if not verdict[name]["tuned wins"]]
            rival = "a lower resolution" if name == "lower resolution" else f"hand-picked settings of {name}"
            outcome = f"does not beat {rival} at {', '.join(lost)}" if lost else f"beats {rival} everywhere"
            said += [f"{task}: tune {outcome}."] if known else []
        said += [f"{task}: {note}." for note in part["notes"]]
    return said


def markdown(result: dict) -> str:
    """The verdicts for the docs."""
    about = (
        f"Tuned on {result['images']} unlabelled training scenes, measured on {result['scenes']} labelled test "
        f"scenes, seed {result['seed']}. In brackets the share of the dense GFLOPs. hand-picked: the best of "
        "its group within 1 % of the cheapest."
    )
    return "\n".join(
        [markdown_table(HEADINGS, verdict_rows(result), names=3, remarks=1), "", *sentences(result), about]
    )


def show(result: dict, console: Console) -> None:
    for task, part in result["tasks"].items():
        arrow = "↑" if part["more is better"] else "↓"
        table = Table(title=f"{task}, {part['gflops']:.2f} GFLOPs dense")
        for column in ("group", "setting", "of dense", f"{part['metric']} {arrow}"):
            table.add_column(column, justify="left" if column in ("group", "setting") else "right", overflow="fold")
        for row in part["rows"]:
            value = f"{row['metrics'][part['metric']]:.4f}"
            told = row["kind"] in ("hand-picked", "tuned")
            style = "bold" if row["kind"] == "tuned" else None
            label = f"{row['kind']} {row['name']}" if told else row["name"]
            table.add_row(row["group"], label, f"{100 * row['gflops_ratio']:.1f} %", value, style=style)
        console.print(table)
    table = Table(title="verdicts")
    for column in HEADINGS:
        table.add_column(column, overflow="fold")
    for line in verdict_rows(result):
        table.add_row(*line)
    console.print(table)
    for sentence in sentences(result):
        console.print(sentence)


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
