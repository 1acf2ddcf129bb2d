"""Errors of every row on every photograph, its FLOPs, and its time."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
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


def measure(judge: Judge, field: Field, only: Sequence[str] | None = None, workers: int = 1) -> tuple[dict, list[Row]]:
    """All rows of all methods, as numbers but for their times, and as they run.

    Args:
        judge: backbone and images.
        field: makes the rows.
        only: methods; None takes all.
        workers: processes that find errors side by side; more than one on a CPU only.
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
    errors = all_errors([row for _, row in rows], judge, dense, workers)
    for (kind, row), lost in zip(rows, track(errors, "errors", total=len(rows)), strict=True):
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
                **lost,
            }
        )
    result = {
        "checkpoint": judge.name,
        "size": judge.size,
        "photographs": judge.names,
        "gflops": whole,
        "blocks gflops": field.encoder.flops / 1e9,
        "rows": found,
        "notes": notes,
    }
    return result, [row for _, row in rows]


_work: tuple[Sequence[Row], Judge, Answer]  # of the workers, which get it by being forked


def all_errors(rows: Sequence[Row], judge: Judge, dense: Answer, workers: int) -> Iterator[dict[str, list[float]]]:
    """`errors_of` every row, in order; by forked processes of one thread each where there are several."""
    if workers == 1:
        yield from (errors_of(row, judge, dense) for row in rows)
        return
    global _work
    _work = rows, judge, dense
    with multiprocessing.get_context("fork").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(_errors_of_number, range(len(rows)))


def _errors_of_number(number: int) -> dict[str, list[float]]:
    rows, judge, dense = _work
    return errors_of(rows[number], judge, dense)


def dense_row(field: Field) -> Row:
    return Row("dense", build.dense(field.subject), 1.0)


def add_times(result: dict, rows: Sequence[Row], field: Field, rounds: int) -> None:
    """Adds seconds and times as fast as dense to the rows of each method's front, timed in turns.

    On a CPU the clock is the processor time of one thread: the time that other processes took does not count.
    """
    judge, found = field.judge, result["rows"]
    result["rounds"] = rounds
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
