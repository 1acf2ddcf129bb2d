"""The experiment on one model: a sweep on validation scenes, its fronts on test scenes, and the clock."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from benchmarks.common import stamp
from hf_tokaccel.checks import UserError
from hf_tokaccel.evaluation.compare import first_batch
from hf_tokaccel.evaluation.loop import EncodedDataset, evaluate_variants, same_size
from hf_tokaccel.evaluation.script import Loaded
from hf_tokaccel.evaluation.script import load as load_evaluation
from hf_tokaccel.evaluation.scripts import EVALUATIONS
from hf_tokaccel.evaluation.task import Task
from hf_tokaccel.measure.agreement import Agreement, read_output
from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.measure.metrics import panoptic, segmentation
from hf_tokaccel.measure.metrics.bootstrap import interval
from hf_tokaccel.measure.speed import time_interleaved
from hf_tokaccel.measure.variant import Variant
from hf_tokaccel.rivals.build import Rival

from .claim import POINTS, SPEEDS, claims, front, losses_of, make_curve, spread
from .methods import CHANGES, METHODS, Subject, entries_of, schedules_of

PATHS = ["hf_tokaccel", "benchmarks/quality"]
RESAMPLES = 1000
# Rows of the test: each is timed and runs on all test scenes. Losses are interpolated, so gaps must be small.
MOST = {"released": 14, "ours": 14}
MOST_OF_OTHERS = 8
# Scenes on which outputs are compared with the dense model's: that varies less from one to the next than the metric.
MOST_COMPARED = 64
# Nothing is to be chosen but the size, so every size counts.
UNCHOSEN = "lower resolution"
# Nothing is claimed beyond 2.5 times; of small models time may fall less than FLOPs.
MOST_GFLOPS_RATIO = 3.6


@dataclass(frozen=True)
class Metric:
    """What decides for a task.

    Attributes:
        key: in tables of evaluations.
        name: for people.
        more_is_better: of it.
    """

    key: str
    name: str
    more_is_better: bool


TASKS = {
    "depth": Metric("abs_rel", "AbsRel", False),
    "segmentation": Metric("miou", "mIoU", True),
    "panoptic": Metric("pq", "PQ", True),
}
_ARCHITECTURES = {
    "DepthEstimation": "depth",
    "SemanticSegmentation": "segmentation",
    "UniversalSegmentation": "panoptic",
}


def task_of(folder: str | Path) -> str:
    """The task of a model's folder.

    Raises:
        ValueError: no folder of a model, or of one for another task.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"model {str(folder)!r} is not valid: it must be a folder with a config.json, as save_pretrained writes."
        )
    names = json.loads(path.read_text()).get("architectures") or ["none"]
    for ending, task in _ARCHITECTURES.items():
        if names[0].endswith(ending):
            return task
    raise UserError(
        f"model {str(folder)!r} of class {names[0]} is not valid: it must end in one of {', '.join(_ARCHITECTURES)}, "
        "for example DPTForDepthEstimation."
    )


def metric_of(task: str, task_object: Task) -> Callable[[Tensor], Tensor]:
    """From additive sums (..., S) to the metric (...)."""
    if task == "depth":  # AbsRel is the first sum; the last counts images.
        return lambda sums: sums[..., 0] / sums[..., -1]
    if task == "segmentation":
        return lambda sums: segmentation.metrics_from_counts(sums)["miou"]
    return lambda sums: panoptic.metrics_from_sums(sums, task_object.protocol.things)["pq"]


def load(task: str, split: str, limit: int, args: argparse.Namespace, device: torch.device) -> Loaded:
    """Model and scenes as `hf_tokaccel evaluate` loads them."""
    model = None if args.model is None else str(args.model)
    options = EVALUATIONS[task](model=model, split=split, limit=limit, seed=args.seed, dtype=args.dtype)
    return load_evaluation(options, device)


def backbone_of(model: nn.Module) -> nn.Module | None:
    """Of a model with a heavy decoder, what runs before it; the papers time that alone. None elsewhere."""
    module = getattr(getattr(model, "model", None), "pixel_level_module", None)
    return None if module is None else module.encoder


class Experiment:
    """One model: its scenes, and what is measured on them."""

    def __init__(self, task: str, args: argparse.Namespace, console: Console) -> None:
        self.task, self.args, self.console = task, args, console
        self.accelerator = Accelerator(cpu=args.cpu)
        self.device = self.accelerator.device
        self.validation = load(task, "validation", args.validation, args, self.device)
        self.test = load(task, "test", args.limit, args, self.device)
        self.dense, self.evaluated = self.validation.dense, self.validation.task
        self.metric = metric_of(task, self.evaluated)
        self.images = first_batch(self.test.dataset.samples, self.evaluated, args.batch_size).to(self.device)
        self.size = tuple(self.images.shape[-2:])

    def sums(self, entries: Sequence[Rival], samples: Any) -> Tensor:
        variants = [entry.variant for entry in entries]
        options = {"batch_size": self.args.batch_size, "num_workers": self.args.num_workers}
        return evaluate_variants(variants, samples, self.evaluated, self.accelerator, **options).sums

    @torch.inference_mode()
    def differences(self, variants: Sequence[Variant], samples: Any) -> list[float]:
        """Hundredths by which outputs differ from those of the first variant, as `tune` sees it; labels are not read.

        Choosing by this is less noisy than by the metric, and can be done without labels.
        """
        encoded, step = EncodedDataset(samples, self.evaluated), self.args.batch_size
        totals, end = [Agreement() for _ in variants], min(len(encoded), MOST_COMPARED)
        for first in track(range(0, end, step), description="differences", console=Console(stderr=True)):
            for items in same_size(encoded.__getitems__(list(range(first, min(first + step, end))))):
                images = torch.stack([item["pixel_values"] for item in items]).to(self.device)
                dense = read_output(variants[0](images))
                for total, variant in zip(totals, variants, strict=True):
                    total.add(read_output(variant(images)), dense)
        return [POINTS * (1 - total.value) for total in totals]

    def gflops(self, entry: Rival) -> float:
        return count_gflops(partial(self.evaluated.run, entry.variant), self.images[:1])

    def sweep(self) -> tuple[list[Rival], list[dict], list[str]]:
        """Every row on the validation scenes: what it is, its GFLOPs, and how far its output is from the dense one."""
        schedules = schedules_of(self.dense, self.size, few=self.args.quick)
        entries, notes = entries_of(Subject(self.dense, self.size, task=self.task, schedules=schedules))
        start = time.perf_counter()
        differences = self.differences([entry.variant for entry in entries], self.validation.dataset.samples)
        rows = [
            {
                "kind": entry.kind,
                "name": entry.name,
                "accel": entry.accel,
                "input_size": list(entry.variant.size(*self.size)),
                "gflops": self.gflops(entry),
                "difference": difference,
            }
            for entry, difference in zip(entries, differences, strict=True)
        ]
        for row in rows:
            row["gflops_ratio"] = rows[0]["gflops"] / row["gflops"]
        self.console.print(f"{self.task}: {len(rows)} settings, {time.perf_counter() - start:.0f} s")
        return entries, rows, notes

    @property
    def more_is_better(self) -> bool:
        return TASKS[self.task].more_is_better

    def times(self, entries: Sequence[Rival]) -> dict[str, list[dict]]:
        """Seconds of a batch of every row, in one interleaved run; with a heavy decoder of the backbone alone, too."""
        parts = {"speed": [self.evaluated.timed(entry.variant, self.images) for entry in entries]}
        if backbone_of(self.dense) is not None:
            inputs = [(backbone_of(entry.model), entry.variant.inputs(self.images)) for entry in entries]
            parts["backbone speed"] = [partial(module, images) for module, images in inputs]
        with torch.inference_mode():
            timings = time_interleaved(
                [call for calls in parts.values() for call in calls], device=self.device, rounds=self.args.rounds
            )
        stated = [{"median": t.median, "p10": t.p10, "p90": t.p90} for t in timings]
        return {name: stated[i * len(entries) : (i + 1) * len(entries)] for i, name in enumerate(parts)}

    def backbone_gflops(self, entry: Rival) -> float:
        return count_gflops(backbone_of(entry.model), entry.variant.inputs(self.images[:1]))


def choose(rows: Sequence[dict]) -> list[int]:
    """Rows of the sweep that go on to the test: dense, and of each method the best by GFLOPs, see `front`."""
    cheapness, lost = [row["gflops_ratio"] for row in rows], [row["difference"] for row in rows]
    chosen = [0]
    for method, kinds in METHODS.items():
        own = [i for i, ratio in enumerate(cheapness) if 1 < ratio <= MOST_GFLOPS_RATIO and rows[i]["kind"] in kinds]
        if own:
            if method == UNCHOSEN:
                chosen += sorted(own, key=lambda i: cheapness[i])
                continue
            members = [own[i] for i in front([cheapness[i] for i in own], [lost[i] for i in own])]
            chosen += spread(members, cheapness, MOST.get(method, MOST_OF_OTHERS))
    return chosen


def run(task: str, args: argparse.Namespace, console: Console) -> dict:
    """Everything about one model, ready for JSON."""
    start = time.perf_counter()
    experiment = Experiment(task, args, console)
    entries, swept, notes = experiment.sweep()
    chosen = choose(swept)
    tested = [entries[i] for i in chosen]
    sums = experiment.sums(tested, experiment.test.dataset.samples)
    values, losses = losses_of(sums, experiment.metric, experiment.more_is_better, RESAMPLES, args.seed)
    rows = [dict(swept[i]) for i in chosen]
    for row, value, loss in zip(rows, values, losses, strict=True):
        row["validation"] = {"difference": row.pop("difference")}
        for name, drawn in (("quality", value), ("loss", loss)):
            row[name] = {"value": drawn[0].item(), "interval": list(interval(drawn[1:]))}
    differences = experiment.differences([entry.variant for entry in tested], experiment.test.dataset.samples)
    for row, difference in zip(rows, differences, strict=True):
        row["difference"] = difference
    _add_costs(experiment, tested, rows)
    judged = {axis: claims(curves_of(rows, losses, axis)) for axis in rows[0]["cheapness"]}
    curves = curves_of(rows, torch.tensor(differences)[:, None], "speed")
    # Classes are compared on the grid of tokens, which is another one there.
    curves.pop(UNCHOSEN, None)
    judged["difference"] = claims(curves)
    metric = TASKS[task]
    return {
        "environment": stamp(PATHS, experiment.device),
        "task": task,
        "model": experiment.validation.name if args.model is None else Path(args.model).name,
        "metric": {"key": metric.key, "name": metric.name, "more is better": metric.more_is_better},
        "input_size": list(experiment.size),
        "scenes": {
            "validation": f"{args.validation} of {experiment.validation.dataset.name}",
            "test": f"{args.limit} of {experiment.test.dataset.name}",
        },
        "options": {
            "batch_size": args.batch_size,
            "rounds": args.rounds,
            "seed": args.seed,
            "dtype": args.dtype,
            "resamples": RESAMPLES,
            "quick": args.quick,
        },
        "notes": notes,
        "sweep": swept,
        "rows": rows,
        "claims": judged,
        "changes": changes(swept),
        "wall_seconds": time.perf_counter() - start,
    }


def _add_costs(experiment: Experiment, tested: Sequence[Rival], rows: list[dict]) -> None:
    """Times, and by each measure of cost how many times as cheap as dense a row is."""
    times = experiment.times(tested)
    for number, (row, entry) in enumerate(zip(rows, tested, strict=True)):
        row["seconds"] = {name: stated[number] for name, stated in times.items()}
        row["cheapness"] = {name: stated[0]["median"] / stated[number]["median"] for name, stated in times.items()}
        row["cheapness"]["GFLOPs"] = row["gflops_ratio"]
        if "backbone speed" in times:
            row["backbone_gflops"] = experiment.backbone_gflops(entry)
            row["cheapness"]["backbone GFLOPs"] = rows[0]["backbone_gflops"] / row["backbone_gflops"]


def curves_of(rows: Sequence[dict], losses: Tensor, axis: str) -> dict:
    """The front of every method that has rows."""
    curves = {}
    for method, kinds in METHODS.items():
        own = [i for i, row in enumerate(rows) if row["kind"] in kinds]
        if own:
            cheapness = [rows[i]["cheapness"][axis] for i in own]
            chosen_by = [rows[i]["validation"]["difference"] for i in own]
            curves[method] = make_curve(cheapness, cheapness if method == UNCHOSEN else chosen_by, losses[own])
    return curves


def changes(swept: Sequence[dict]) -> list[dict]:
    """Difference on the validation scenes with none, one and all of our changes, at equal GFLOPs.

    All but the last two have the same schedules to choose from.
    """
    curves = {}
    for name, kinds in CHANGES.items():
        own = [row for row in swept if row["kind"] in kinds]
        losses = [row["difference"] for row in own]
        if own:
            curves[name] = make_curve([row["gflops_ratio"] for row in own], losses, torch.tensor(losses)[:, None])
    lines = []
    for ratio in SPEEDS:
        at = {name: curve.at(ratio) for name, curve in curves.items()}
        lines.append({"speed": ratio, "loss": {n: None if v is None else v[0].item() for n, v in at.items()}})
    return lines
