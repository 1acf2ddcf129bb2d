"""Quality, speed and cost of several variants of a model: the numbers of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from ..checks import UserError
from ..measure.flops import count_gflops
from ..measure.progress import progress_bar
from ..measure.speed import time_interleaved
from ..results.rows import Row
from ..rivals.build import Rival
from .loop import EncodedDataset, evaluate_variants, same_size
from .task import Task


def first_items(samples: Sequence[dict], task: Task, count: int) -> list[dict]:
    """The first encoded samples that can be read; the loop will name those that cannot.

    Raises:
        ValueError: A sample that does not fit the task, or none that can be read.
    """
    encoded, items, error = EncodedDataset(samples, task), [], ""
    for index in range(len(encoded)):
        item = encoded[index]
        if "error" not in item:
            items.append(item)
        elif not item["skippable"]:
            raise UserError(item["error"])
        else:
            error = error or item["error"]
        if len(items) == count:
            break
    if not items:
        raise UserError(f"none of the {len(encoded)} images can be read, the first because {error}")
    return items


def first_batch(samples: Sequence[dict], task: Task, batch_size: int) -> Tensor:
    """Real model input for timing: images of one size from the start of a data set, (B, 3, h, w)."""
    items = first_items(samples, task, batch_size)
    return torch.stack([item["pixel_values"] for item in max(same_size(items), key=len)])


@dataclass
class Comparison:
    """What `compare` found: lines of a table, and why each skipped image was skipped, by its index."""

    rows: list[Row]
    skipped: dict[int, str]


def compare(
    entries: Sequence[Rival],
    samples: Sequence[dict],
    task: Task,
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    rounds: int = 10,
    skip_bad: bool = False,
) -> Comparison | None:
    """Measure every entry; the first is what the others are compared with.

    Args:
        entries: What is compared.
        samples: Items that `task.encode` takes.
        task: What is measured.
        accelerator: From `make_accelerator`; all of its processes must call this.
        batch_size: Images per batch and process.
        num_workers: Data loader workers per process.
        rounds: Timed rounds over all entries.
        skip_bad: Leave out files that cannot be read.

    Returns:
        Rows in the order of the entries on the main process, None on the others.

    Raises:
        ValueError: See `evaluate_variants`.
    """
    variants = [entry.variant for entry in entries]
    options = {"batch_size": batch_size, "num_workers": num_workers, "skip_bad": skip_bad}
    scores = evaluate_variants(variants, samples, task, accelerator, **options)
    if not accelerator.is_main_process:
        return None
    pixel_values = first_batch(samples, task, batch_size).to(accelerator.device)
    calls = [task.timed(variant, pixel_values) for variant in variants]
    # Every variant has just run on all images, so one round is enough to warm up.
    with progress_bar() as progress:
        bar = progress.add_task("timing", total=len(calls) * (rounds + 1))
        advance = partial(progress.advance, bar)
        timings = time_interleaved(calls, device=accelerator.device, rounds=rounds, warmup=1, advance=advance)
    gflops = [count_gflops(partial(task.run, variant.with_eager()), pixel_values[:1]) for variant in variants]
    size = task.model_input(pixel_values).shape[-2:]
    summaries = task.summarise(scores.sums, scores.kept)
    rows = [
        Row(
            name=entry.name,
            kind=entry.kind,
            accel=entry.accel,
            input_size=entry.variant.size(*size),
            metrics=quality.metrics,
            gflops=cost,
            gflops_ratio=cost / gflops[0],
            images_per_second=len(pixel_values) / timing.median,
            speedup=timing.speedup,
            seconds={"median": timing.median, "p10": timing.p10, "p90": timing.p90},
            group=entry.group,
            intervals=quality.intervals,
            classes=quality.classes,
        )
        for entry, quality, cost, timing in zip(entries, summaries, gflops, timings, strict=True)
    ]
    return Comparison(rows, scores.skipped)
