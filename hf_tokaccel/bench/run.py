"""The benchmark itself: every rival in every mode, timed in turns in one run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..auto import accelerate
from ..checks import UserError
from ..images import run_once
from ..measure.agreement import Reading, mean_agreement, read_pixels
from ..measure.environment import describe_environment
from ..measure.memory import peak_memory
from ..measure.method import MethodAlone
from ..measure.speed import WARM_UP, seconds_in_a_row, seconds_interleaved, summarise, warm_up
from ..rivals.build import BENCH, Rival, Subject, rivals_of
from ..rivals.settings import CAREFUL_AND_BOLD, default_settings
from ..settings.clustering import TokenClusteringConfig
from .modes import Mode
from .result import BenchResult, BenchRow

IN_A_ROW = 0.1  # seconds of calls that are not waited for


@dataclass
class _Runner:
    """A rival in a mode, ready to be timed."""

    rival: Rival
    mode: Mode
    call: Callable[[], Any]
    alone: Callable[[], Any] | None
    output: Reading
    memory: int | None
    skips: int = 0  # graphs of its compiled code that PyTorch did not record as CUDA graphs


@torch.inference_mode()
def bench(
    model: PreTrainedModel,
    images: Tensor,
    settings: Sequence[TokenClusteringConfig | dict] | None = None,
    *,
    modes: Sequence[Mode] = (Mode(),),
    rivals: bool = True,
    rounds: int = 10,
    warmup: int = 2,
    name: str = "",
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> BenchResult:
    """Speed, memory, GFLOPs and agreement of a dense model and its rivals, in one interleaved run.

    Args:
        model: dense and float32, on the device to measure.
        images: (B, 3, h, w) float32 as the model reads them; B is the batch size.
        settings: clustered rows; None takes a careful and a bold one.
        modes: every row runs in each; agreement is with the dense model in the first.
        rivals: add grid pooling, lower resolution and token merging to each group of settings.
        rounds: timed rounds, each running everything once.
        warmup: rounds before those.
        name: of the model, for the report.
        advance: told what is being done, how much of it is and how much there is.

    Raises:
        ValueError: a model that cannot be accelerated or needs more than images, a setting that does not fit, a mode
            that this device cannot run, or rounds below 1.
    """
    device = images.device
    if rounds < 1 or warmup < 0:
        raise UserError(f"rounds={rounds} must be 1 or more and warmup={warmup} 0 or more, for example 10 and 2")
    if not modes or len(set(modes)) < len(modes):
        raise UserError(
            f"modes {[mode.name for mode in modes]} must be one or more different ones, for example [Mode()]"
        )
    for mode in modes:
        mode.check(device)
    settings = settings and [TokenClusteringConfig.from_dict(s) if isinstance(s, dict) else s for s in settings]
    size = tuple(images.shape[-2:])
    model = model.eval().requires_grad_(False)
    read_pixels(run_once(model, images[:1]))
    if settings is None:
        settings = default_settings(model, size, CAREFUL_AND_BOLD)
    subject = Subject(accelerate(model, None), size)
    rows, notes = rivals_of(subject, settings, BENCH if rivals else {})
    gflops = [subject.gflops(row) for row in rows]
    runners, total = [], len(modes) * len(rows)
    for mode in modes:
        base = mode.base(model)
        mode.check_attention(model, partial(base, **rows[0].of(base).variant.arguments(images[:1])))
        for rival in rows:
            advance("preparing", len(runners), total)
            runners.append(_prepare(rival.of(base), mode, images))
    alone = [runner.alone for runner in runners if runner.alone]
    calls, done, steps = [runner.call for runner in runners] + alone, 0, 0

    def step() -> None:
        nonlocal done
        done += 1
        advance("timing", done, steps)

    steps = len(calls) * (rounds + warmup)
    if device.type != "cpu":
        warm_up(calls, device, WARM_UP)
    seconds = seconds_interleaved(calls, device=device, rounds=rounds, warmup=warmup, advance=step)
    measured = _rows(runners, seconds, gflops, len(images))
    if device.type != "cpu":
        _add_throughput(measured, runners, images)
    return BenchResult(
        model=name or type(model).__name__,
        image_size=size,
        batch_size=len(images),
        rounds=rounds,
        weights=sum(p.numel() for p in model.parameters()),
        environment=describe_environment(device),
        rows=measured,
        notes=notes + _without_graphs(runners),
    )


def _prepare(rival: Rival, mode: Mode, images: Tensor) -> _Runner:
    model, arguments = rival.model, rival.variant.arguments(images)
    alone = None
    if not rival.runs_dense:
        # Recorded from the model as it is, then run as this mode runs things.
        recorded = MethodAlone(model, partial(model, **arguments))
        alone = mode.compiled(recorded.__call__) if recorded.ran else None
    call = partial(mode.compiled(model), **arguments)
    before = _skipped()
    output = read_pixels(call())  # compiles
    # What reads the output makes new tensors of most, but not of all; CUDA graphs write over those.
    output = replace(output, value=output.value.clone())
    memory = None
    if mode.compile is not None:
        # CUDA graphs are recorded in the second call, and take the memory then that replays use.
        memory = peak_memory(call, images.device)
    skips = _skipped() - before
    if mode.compile is not None and alone is not None:
        alone()  # compiles, too: of token merging, whose every layer has another shape, for minutes
    gc.collect()
    if not mode.graphs:
        memory = peak_memory(call, images.device)
    return _Runner(rival, mode, call, alone, output, memory, skips)


def _skipped() -> int:
    """Compiled graphs so far that PyTorch did not record as CUDA graphs, since they touch the CPU, for example."""
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


def _without_graphs(runners: list[_Runner]) -> list[str]:
    """A note on rows whose mode says CUDA graphs and that run without some of them."""
    names = [f"{runner.rival.name} ({runner.mode.name})" for runner in runners if runner.mode.graphs and runner.skips]
    said = "PyTorch recorded no CUDA graph of a part of them, such as hosts that index with tensors on the CPU"
    return [f"{said}: {', '.join(names)}"] if names else []


def _add_throughput(rows: list[BenchRow], runners: list[_Runner], images: Tensor) -> None:
    """Of calls that are not waited for one by one, in turns."""
    turns: list[list[float]] = [[] for _ in rows]
    for _ in range(3):
        for own, row, runner in zip(turns, rows, runners, strict=True):
            calls = min(max(round(IN_A_ROW / row.seconds["p50"]), 2), 100)
            own.append(seconds_in_a_row(runner.call, calls, images.device))
    for own, row in zip(turns, rows, strict=True):
        row.throughput = len(images) / median(own)


def _rows(runners: list[_Runner], seconds: list[list[float]], gflops: list[float], batch: int) -> list[BenchRow]:
    method = iter(seconds[len(runners) :])
    dense: dict[Mode, list[float]] = {}
    rows = []
    # As many rows in every mode.
    for runner, times, cost in zip(runners, seconds, cycle(gflops), strict=False):
        rival = runner.rival
        base = dense.setdefault(runner.mode, times)  # Each mode's first row is dense.
        timing, overall = summarise(times, base), summarise(times, seconds[0])
        spent = layers = None
        if runner.alone is not None:
            own = next(method)
            spent = median(own)
            # Within each round, as the speed-ups are.
            layers = median(b / max(t - m, 1e-9) for b, t, m in zip(base, times, own, strict=True))
        rows.append(
            BenchRow(
                name=rival.name,
                kind=rival.kind,
                group=rival.group,
                mode=runner.mode.name,
                accel=rival.accel,
                per_layer=rival.per_layer,
                input_size=_size(runner.call),
                seconds={"p50": timing.median, "p10": timing.p10, "p90": timing.p90},
                images_per_second=batch / timing.median,
                speedup=timing.speedup,
                speedup_overall=overall.speedup,
                peak_bytes=runner.memory,
                gflops=cost,
                gflops_ratio=cost / gflops[0],
                agreement=mean_agreement(runner.output, runners[0].output),
                method_seconds=spent,
                layers_only_speedup=layers,
            )
        )
    return rows


def _size(call: partial) -> tuple[int, int]:
    return tuple(call.keywords["pixel_values"].shape[-2:])
