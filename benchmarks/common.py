"""What every benchmark shares: where a number comes from, and how it is timed."""

from __future__ import annotations

import gc
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from hf_tokaccel.evaluation import describe_environment
from hf_tokaccel.results.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def stamp(paths: Iterable[str], device: torch.device | str | None = None) -> dict:
    """Machine, versions, commit and command; `changed`: edited files among `paths`, which the numbers depend on.

    Args:
        device: that was measured; by default a GPU where there is one.
    """
    environment = describe_environment(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    status = ["git", "status", "--porcelain", "--", *paths]
    changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    return environment | {"changed": changed}


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    shortest: float = 0.01,
) -> dict[str, list[float]]:
    """Seconds per call of each function, one entry per round.

    Every round times every function once, so that a change of the machine's speed hits all of them; compare within
    rounds. Functions faster than `shortest` seconds are called several times per round. The first two calls are thrown
    away.

    Args:
        clock: `time.thread_time`, with one thread, leaves out the time that other processes took from this one.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        start = clock()
        function()
        repeats[name] = max(1, round(shortest / (clock() - start)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, function in functions.items():
                start = clock()
                for _ in range(repeats[name]):
                    function()
                times[name].append((clock() - start) / repeats[name])
    finally:
        gc.enable()
    return times


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "p25": low, "p75": high}


def ratios(values: list[float], base: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within rounds."""
    return summary([value / unit for value, unit in zip(values, base, strict=True)])


def peak_bytes(function: Callable[[], object]) -> int:
    """How far a call raises this process's resident memory (Linux). Use a fresh process for each measurement."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def save(name: str, result: dict) -> Path:
    """Write `result` to benchmarks/results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_json(path, result)
    return path
