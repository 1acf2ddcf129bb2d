"""Errors of every row on every photograph, its FLOPs, and its time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from benchmarks.quality.claim import front
from hf_tokaccel.measure.speed import seconds_interleaved, summarise
from hf_tokaccel.rivals import build

from .methods import METHODS, Field, Row
from .subject import Judge, features


@dataclass(frozen=True)
class Answer:
    """What the dense model says, once.

    Attributes:
        features: (B, C, h, w).
        saliency: (B, 1, H, W), or None.
    """

    features: Tensor
    saliency: Tensor | None


def run_row(row: Row, judge: Judge, image: Tensor) -> Tensor:
    """Features (1, C, h, w) of an image (1, 3, H, W) at the dense model's resolution."""
    variant = row.rival.variant
    size = variant.size(*judge.size)
    grid = tuple(n * side // whole for n, side, whole in zip(judge.grid, size, judge.size, strict=True))
    found = features(variant.model, variant.inputs(image), grid)
    return found if grid == judge.grid else F.interpolate(found, judge.grid, mode="bicubic", align_corners=False)


@torch.inference_mode()
def answer(judge: Judge) -> Answer:
    """The dense features, and the saliency where there is a head."""
    found = torch.cat([features(judge.model, image[None], judge.grid) for image in judge.images])
    return Answer(found, None if judge.head is None else torch.cat([judge.head(x[None], judge.size) for x in found]))


@torch.inference_mode()
def errors_of(row: Row, judge: Judge, dense: Answer) -> dict[str, list[float]]:
    """One number for each image.

    `features` and `saliency`: squared difference to the dense ones over their variance over the image. `cosine`: of
    the features of a patch with the dense ones, mean over patches.
    """
    found: dict[str, list[float]] = {"features": [], "cosine": []} | ({"saliency": []} if judge.head else {})
    for number, image in enumerate(judge.images):
        ours, theirs = run_row(row, judge, image[None]), dense.features[number : number + 1]
        found["features"].append(relative_error(ours, theirs))
        found["cosine"].append(F.cosine_similarity(ours, theirs, dim=1).mean().item())
        if judge.head is not None:
            saliency = judge.head(ours, judge.size)
            found["saliency"].append(relative_error(saliency, dense.saliency[number : number + 1]))
    return found


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Mean squared difference over the variance of `theirs` (1, C, h, w) over its places, mean over channels."""
    variance = (theirs - theirs.mean((2, 3), keepdim=True)).square().mean()
    return ((ours - theirs).square().mean() / variance).item()


def measure(judge: Judge, field: Field, rounds: int, only: Sequence[str] | None = None) -> dict:
    """All rows of all methods, as numbers.

    Args:
        judge: backbone and images.
        field: makes the rows.
        rounds: timed, in turns; rows that another of their method beats are not timed.
        only: methods; None takes all.
    """
    dense, rows, notes = answer(judge), [], list(judge.notes)
    for method in METHODS:
        if only is not None and method.__name__ not in only:
            continue
        try:
            rows += [(method.__name__, row) for row in method(field)]
        except (ValueError, RuntimeError) as error:  # models with a fixed size raise either
            notes.append(f"no {method.__name__.replace('_', ' ')}: {error}".rstrip("."))
    whole = field.subject.gflops(dense_row(field).rival)
    found = []
    for kind, row in track(rows, f"{len(rows)} rows"):
        gflops = field.subject.gflops(row.rival)
        found.append(
            {
                "of": kind,
                "method": row.method,
                "name": row.rival.name,
                "accel": row.rival.accel,
                "share": row.share,
                "gflops": gflops,
                "cheapness": {"blocks": 1 / row.share, "gflops": whole / gflops},
                **errors_of(row, judge, dense),
            }
        )
    add_times(found, [row for _, row in rows], field, rounds)
    return {
        "checkpoint": judge.name,
        "size": judge.size,
        "photographs": judge.names,
        "gflops": whole,
        "blocks gflops": field.encoder.flops / 1e9,
        "rounds": rounds,
        "rows": found,
        "notes": notes,
    }


def dense_row(field: Field) -> Row:
    return Row("dense", build.dense(field.subject), 1.0)


def add_times(found: list[dict], rows: Sequence[Row], field: Field, rounds: int) -> None:
    """Adds seconds and times as fast as dense to the rows of each method's front.

    On a CPU the clock is the processor time of one thread: other processes on the machine do not count.
    """
    judge = field.judge
    image = judge.images[:1]
    methods = dict.fromkeys(row.method for row in rows if row.timed)
    timed = [n for method in methods for n in on_front(found, method)]
    functions = [lambda row=row: run_row(row, judge, image) for row in (dense_row(field), *(rows[n] for n in timed))]
    on_cpu, threads = image.device.type == "cpu", torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    clock = time.thread_time if on_cpu else time.perf_counter
    seconds = seconds_interleaved(functions, device=image.device, rounds=rounds, warmup=1, clock=clock)
    torch.set_num_threads(threads)
    for number, times in zip(timed, seconds[1:], strict=True):
        timing = summarise(times, seconds[0])
        found[number]["seconds"] = timing.median
        found[number]["cheapness"]["time"] = timing.speedup


def on_front(found: Sequence[dict], method: str) -> list[int]:
    """Places of a method's rows that no other beats in GFLOPs and in the mean error of features."""
    places = [n for n, row in enumerate(found) if row["method"] == method]
    errors = [math.fsum(found[n]["features"]) for n in places]
    return [places[i] for i in front([found[n]["cheapness"]["gflops"] for n in places], errors)]
