"""Base and semantic-token classifiers trained side by side: same recipe, images, batches and seeds.

python -m benchmarks.semantic_training                    about 22 minutes of one core; writes benchmarks/results
python -m benchmarks.semantic_training --seeds 1 --data digits     quick look
python -m benchmarks.semantic_training --data scenes --size deit-tiny --image-size 224 --images 20000 \\
    --batch-size 256 --lr 2e-3 --mixed-precision bf16 --workers 8 --name semantic_training-gpu    on a GPU

The recipe was chosen for the base model alone. Models are those of the last epoch; scores are of the test split, which
nothing was chosen on. Runs that are finished are not repeated, and one that was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from rich.console import Console

from benchmarks.common import ROOT, interleaved, ratios, save, stamp
from hf_tokaccel.evaluation import make_accelerator
from hf_tokaccel.measure.environment import git_commit
from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.measure.speed import time_interleaved
from hf_tokaccel.results.report import markdown_table
from hf_tokaccel.semantic import SemanticTokenConfig
from hf_tokaccel.training.classification import (
    SIZES,
    Recipe,
    Run,
    Settings,
    build_model,
    build_processor,
    evaluate,
    load_images,
)
from hf_tokaccel.training.classification.models import input_size
from hf_tokaccel.training.classification.recipe import PRESETS
from hf_tokaccel.training.loop import last_checkpoint
from hf_tokaccel.tuning.text import parse_accel

PATHS = [
    "hf_tokaccel/training/classification",
    "hf_tokaccel/training/loop.py",
    "hf_tokaccel/semantic",
    "hf_tokaccel/scenes",
]
PATHS += ["hf_tokaccel/models/stvit.py", "hf_tokaccel/models/stvit_swin.py", "benchmarks/semantic_training.py"]
BASE, SEMANTIC = "base", "semantic tokens"


def recipe_of(args: argparse.Namespace, data: str) -> Recipe:
    """The preset of a data set with what the options change."""
    given = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr") if getattr(args, name) is not None}
    recipe = Recipe(**{**PRESETS[data], **given})
    return recipe if recipe.drop_path is not None else replace(recipe, drop_path=0.1)


def train_one(args: argparse.Namespace, data: str, kind: str, seed: int) -> dict:
    """The result of one run, from its folder where it is finished."""
    folder = args.work / f"{data}-{args.size}-{kind.replace(' ', '-')}-{seed}"
    recipe = recipe_of(args, data)
    processor = build_processor(args.size, 1.0, args.image_size)
    size = input_size(processor)
    asked = {"data": data, "size": args.size, "input": size, "images": args.images, "recipe": asdict(recipe)}
    asked |= {"kind": kind, "accel": args.accel if kind == SEMANTIC else None, "seed": seed}
    asked = json.loads(json.dumps(asked))
    if (folder / "result.json").is_file():
        found = json.loads((folder / "result.json").read_text())
        if found["asked"] != asked:
            differ = sorted(name for name in asked if asked[name] != found["asked"].get(name))
            raise ValueError(f"{folder} holds a run with another {', '.join(differ)}: choose another --work")
        return found
    train, validation, test = (
        load_images(data, split, size, limit=args.images if split == "train" else None)
        for split in ("train", "validation", "test")
    )
    accelerator = make_accelerator(args.cpu, mixed_precision=args.mixed_precision)
    set_seed(seed)
    model = build_model(args.size, train.classes, accel=read_accel(args, kind), dense=kind == BASE, image_size=size[0])
    settings = Settings(
        work=folder,
        seed=seed,
        workers=args.workers,
        eval_every=max(1, recipe.epochs // 4),
        keep="last",
        save_every=500,
        resume=last_checkpoint(folder) is not None,
        identity=asked,
    )
    run = Run(model, processor, train, validation, recipe, accelerator, settings)
    accelerator.print(f"{folder.name}: {run.total} steps")
    run.go()
    scores = evaluate(run.result(), test, processor, accelerator, workers=args.workers)
    commit = git_commit()
    result = {"asked": asked, "test": scores, "history": run.state["history"], "seconds": run.seconds()}
    result |= {"images": {images.name: len(images) for images in (train, validation, test)}, "commit": commit}
    if accelerator.is_main_process:
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def read_accel(args: argparse.Namespace, kind: str) -> SemanticTokenConfig | None:
    example = "token_grid=4x4,base_layers=4"
    return parse_accel(args.accel, SemanticTokenConfig, example) if args.accel and kind == SEMANTIC else None


def measure(args: argparse.Namespace, data: str) -> dict[str, dict]:
    """FLOPs, parameters and speed of both models, untrained: neither depends on the weights."""
    torch.set_num_threads(1)
    device = make_accelerator(args.cpu, mixed_precision=args.mixed_precision).device
    size = input_size(build_processor(args.size, 1.0, args.image_size))
    classes = load_images(data, "validation", size).classes
    models = {
        kind: build_model(args.size, classes, accel=read_accel(args, kind), dense=kind == BASE, image_size=size[0])
        for kind in (BASE, SEMANTIC)
    }
    rows = {}
    for kind, model in models.items():
        model.eval().requires_grad_(False).to(device)
        gflops = count_gflops(
            lambda pixels, model=model: model(pixel_values=pixels), torch.rand(1, 3, *size).to(device)
        )
        rows[kind] = {"gflops": gflops, "parameters": sum(p.numel() for p in model.parameters())}
        rows[kind]["accel"] = getattr(model.config, "accel", None)
    for batch in args.batches:
        pixels = torch.rand(batch, 3, *size).to(device)
        calls = {kind: partial(model, pixel_values=pixels) for kind, model in models.items()}
        for kind, (seconds, speedup) in speeds(calls, device, args.rounds).items():
            rows[kind][f"batch {batch}"] = {"images_per_second": batch / seconds, "speedup": speedup}
    return rows


@torch.inference_mode()
def speeds(calls: dict[str, Callable], device: torch.device, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each call, and its median speed-up over the first within rounds.

    On a CPU in time of the calling thread, which other programs do not lengthen.
    """
    if device.type != "cpu":
        timings = time_interleaved(list(calls.values()), device=device, rounds=rounds, warmup=3)
        return {kind: (timing.median, timing.speedup) for kind, timing in zip(calls, timings, strict=True)}
    times = interleaved(calls, rounds, time.thread_time)
    base = next(iter(times.values()))
    return {kind: (statistics.median(own), ratios(base, own)["median"]) for kind, own in times.items()}


def train_all(args: argparse.Namespace, data: str) -> list[dict[str, dict]]:
    """The results of both models by seed; seed by seed, so that an interrupted experiment has pairs."""
    return [{kind: train_one(args, data, kind, seed) for kind in (BASE, SEMANTIC)} for seed in range(args.seeds)]


def compare(runs: list[dict[str, dict]], costs: dict[str, dict]) -> list[dict]:
    """Both rows of a data set: scores of every seed, their mean and spread, and what they cost."""
    rows, asked = [], runs[0][BASE]["asked"]
    for kind, cost in costs.items():
        scores = [run[kind]["test"]["accuracy"] for run in runs]
        differences = [run[kind]["test"]["accuracy"] - run[BASE]["test"]["accuracy"] for run in runs]
        rows.append({
            "data": asked["data"],
            "size": asked["size"],
            "kind": kind,
            "accuracy": scores,
            "mean": statistics.mean(scores),
            "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
            "differences": differences,
            "mean_difference": statistics.mean(differences),
            "loss": [run[kind]["test"]["loss"] for run in runs],
            "train_seconds": [run[kind]["seconds"] for run in runs],
            "commits": sorted({run[kind]["commit"]["commit"] for run in runs if run[kind]["commit"]}),
            "images": runs[0][kind]["images"],
            "recipe": asked["recipe"],
            **cost,
        })  # fmt: skip
    return rows


def markdown(rows: list[dict], batches: list[int]) -> str:
    """The table: accuracy as mean and standard deviation over seeds, differences of the same seeds."""
    head = ["data", "model", "accuracy, %", "difference, points (each seed)", "MFLOPs", "of base", "parameters, M"]
    head += [f"speed, batch {batch}" for batch in batches]
    lines = []
    for row in rows:
        base = next(other for other in rows if other["data"] == row["data"] and other["kind"] == BASE)
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
        each = ", ".join(f"{100 * value:+.1f}" for value in row["differences"])
        grid = row["accel"]["token_grid"] if row["accel"] else None
        where = "" if grid is None else f", {grid[0]} x {grid[1]}{'' if 'deit' in row['size'] else ' of a window'}"
        cells = [row["data"], f"{row['size']}, {row['kind']}{where}", f"{100 * row['mean']:.1f}{spread}"]
        cells.append("" if grid is None else f"{100 * row['mean_difference']:+.1f} ({each})")
        cells += [f"{1000 * row['gflops']:.1f}", f"{100 * row['gflops'] / base['gflops']:.0f} %"]
        cells.append(f"{row['parameters'] / 1e6:.2f}")
        cells += [f"{row[f'batch {batch}']['speedup']:.2f}x" for batch in batches]
        lines.append(cells)
    return markdown_table(head, lines, names=2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", choices=tuple(PRESETS), default=list(PRESETS))
    add("--size", choices=tuple(SIZES), default="deit-micro")
    add("--accel", help="semantic tokens as JSON or key=value,... (default: the family's)")
    add("--image-size", type=int, help="in pixels (default: the size's own)")
    add("--images", type=int, help="training images at most; of scenes how many to render")
    add("--seeds", type=int, default=3)
    for name, kind in (("epochs", int), ("batch-size", int), ("lr", float)):
        add(f"--{name}", type=kind, help="instead of the preset's, see hf_tokaccel.training.classification.recipe")
    add("--rounds", type=int, default=40, help="of the timing")
    add("--batches", type=int, nargs="+", default=[1, 32], help="batch sizes that are timed")
    add("--threads", type=int, default=1, help="of the CPU, in training; speed is measured with one")
    add("--workers", type=int, default=0, help="processes that load data")
    add("--mixed-precision", choices=("no", "bf16", "fp16"))
    add("--cpu", action="store_true")
    add("--work", type=Path, default=ROOT / "outputs" / "semantic_training", help="folder of the runs")
    add("--name", default="semantic_training", help="of the result file")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds} must be at least 1, for example 3")
    torch.set_num_threads(args.threads)
    try:
        runs = {data: train_all(args, data) for data in args.data}
        rows = [row for data, own in runs.items() for row in compare(own, measure(args, data))]
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=170)
    console.print(markdown(rows, args.batches), markup=False, highlight=False, soft_wrap=True)
    result = {"rows": rows, "markdown": markdown(rows, args.batches), "options": vars(args) | {"work": None}}
    path = save(args.name, {**result, **stamp(PATHS, make_accelerator(args.cpu).device)})
    console.print(f"{path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
