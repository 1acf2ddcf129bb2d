"""What every benchmark shares: where a number comes from, and how it is timed."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image

from hf_tokaccel.measure.environment import describe_environment
from hf_tokaccel.measure.speed import WARM_UP, seconds_interleaved, warm_up
from hf_tokaccel.results.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def stamp(paths: Iterable[str], device: torch.device | str = "cpu") -> dict:
    """Machine, versions, commit and command; `changed`: edited files among `paths`, which the numbers depend on.

    Args:
        device: that was measured.
    """
    environment = describe_environment(device)
    status = ["git", "status", "--porcelain", "--", *paths]
    changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    return environment | {"changed": changed}


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Seconds per call of each function, one entry per round; those that are quick run several times in each.

    Args:
        clock: `time.thread_time`, with one thread, leaves out the time that other processes took from this one.
        device: where they run.
    """
    calls, device = list(functions.values()), torch.device(device)
    if device.type != "cpu":
        warm_up(calls, device, WARM_UP)
    times = seconds_interleaved(calls, device=device, rounds=rounds, clock=clock, shortest=0.01)
    return dict(zip(functions, times, strict=True))


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "p25": low, "p75": high}


def ratios(values: list[float], base: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within rounds."""
    return summary([value / unit for value, unit in zip(values, base, strict=True)])


def shrink(picture: Path) -> None:
    """256 colours: what is committed stays in history for ever."""
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)


def save(name: str, result: dict) -> Path:
    """Write `result` to benchmarks/results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_json(path, result)
    return path
