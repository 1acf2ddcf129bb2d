"""Interleaved timing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from ..checks import UserError

WARM_UP = 0.5  # seconds in which a GPU reaches its clocks


@dataclass(frozen=True)
class Timing:
    """Time of one function over all rounds.

    Attributes:
        median: Median seconds of a call.
        p10: 10th percentile, seconds.
        p90: 90th percentile, seconds.
        speedup: Median over rounds of baseline time / own time in the same round.
    """

    median: float
    p10: float
    p90: float
    speedup: float


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_interleaved(
    functions: Sequence[Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
    advance: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time functions in turns; the first is the baseline of the speed-ups. See `seconds_interleaved`."""
    seconds = seconds_interleaved(functions, device=device, rounds=rounds, warmup=warmup, advance=advance)
    return [summarise(times, seconds[0]) for times in seconds]


@torch.inference_mode()
def seconds_interleaved(
    functions: Sequence[Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
    advance: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    shortest: float = 0.0,
) -> list[list[float]]:
    """Seconds of a call in every round for each function, in turns: a machine that slows down slows all of them.

    Args:
        functions: What is timed.
        device: Where the functions run; it is synchronised around each call.
        rounds: Timed rounds, each calling every function once.
        warmup: Rounds that are run before and not timed.
        advance: Called when a function has had its turn, for a progress bar.
        clock: In seconds. `time.thread_time`, with one thread, leaves out the time that other processes took.
        shortest: Seconds of a turn at least: a function that takes less in the last warm-up round is called several
            times in a turn, and the mean counts.
    """
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1, for example 10")
    device = torch.device(device)
    seconds, repeats = [[] for _ in functions], [1] * len(functions)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # A collection inside a call would be charged to whichever function triggers it.
    try:
        for i in range(warmup + rounds):
            for number, function in enumerate(functions):
                _synchronize(device)
                start = clock()
                for _ in range(repeats[number]):
                    function()
                _synchronize(device)
                elapsed = clock() - start
                if i >= warmup:
                    seconds[number].append(elapsed / repeats[number])
                elif i == warmup - 1 and shortest:
                    repeats[number] = max(1, round(shortest / max(elapsed, 1e-9)))
                advance()
    finally:
        if collects:
            gc.enable()
    return seconds


@torch.inference_mode()
def warm_up(functions: Sequence[Callable[[], object]], device: torch.device, seconds: float) -> None:
    """Calls all in turns for so many seconds at least: an idle GPU takes longer to reach its clocks than a round."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for function in functions:
            function()
        _synchronize(device)


@torch.inference_mode()
def seconds_in_a_row(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Of one of `calls` that are not waited for one by one, as throughput needs; on CUDA by events."""
    _synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        _synchronize(device)
        return (time.perf_counter() - start) / calls
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(calls):
        function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


def summarise(times: Sequence[float], baseline: Sequence[float]) -> Timing:
    """Median and spread of `times` in seconds, and the speed-up against the baseline's times of the same rounds."""
    p10, *_, p90 = quantiles(times, n=10, method="inclusive") if len(times) > 1 else (times[0], times[0])
    return Timing(median(times), p10, p90, median(b / t for b, t in zip(baseline, times, strict=True)))
