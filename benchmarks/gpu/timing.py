"""Times on a GPU: of a call that is waited for, of calls in a row, and of the replays of a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from hf_tokaccel.measure.memory import peak_memory
from hf_tokaccel.measure.speed import seconds_in_a_row, seconds_interleaved, summarise

Call = Callable[[], Any]
CALLS = 3  # at least, to warm up


@dataclass
class Effort:
    """How long things are timed; a quick run takes less of each.

    Attributes:
        warm_up: seconds before a call is timed.
        alone: seconds of calls that are waited for.
        in_a_row: seconds of calls that are not.
    """

    warm_up: float = 0.06
    alone: float = 0.15
    in_a_row: float = 0.12


EFFORT = Effort()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(call: Call, device: torch.device) -> float:
    """Seconds of a call once everything is loaded, compiled and at speed."""
    for _ in range(CALLS - 1):
        call()
    wait(device)
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < EFFORT.warm_up:
        call()
        wait(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def refused(error: Exception) -> dict[str, str]:
    """An error in place of numbers."""
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


def usable(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, Any]]:
    """Those that run, each called once, and by name the errors of the others."""
    found, errors = {}, {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            errors[name] = refused(error)
            continue
        found[name] = call
    return found, errors


@torch.inference_mode()
def timed(calls: Mapping[str, Call], device: torch.device) -> dict[str, dict[str, float]]:
    """By name: `ms` of a call that is waited for with `p10` and `p90`, and `row_ms` of a call in a row; in turns."""
    spent = {name: warm_up(call, device) for name, call in calls.items()}
    rounds = min(max(round(EFFORT.alone * len(spent) / sum(spent.values())), 5), 50)
    alone = seconds_interleaved(list(calls.values()), device=device, rounds=rounds, warmup=1)
    rows: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(3):
        for name, call in calls.items():
            count = min(max(round(EFFORT.in_a_row / 3 / spent[name]), 2), 100)
            rows[name].append(seconds_in_a_row(call, count, device))
    found = {}
    for (name, row), times in zip(rows.items(), alone, strict=True):
        timing = summarise(times, alone[0])
        found[name] = {
            "ms": 1e3 * timing.median,
            "p10": 1e3 * timing.p10,
            "p90": 1e3 * timing.p90,
            "row_ms": 1e3 * median(row),
        }
    return found


def record_graph(call: Call, device: torch.device) -> Call:
    """A call as a CUDA graph, to be replayed.

    Raises:
        ValueError: there is no GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"device {device.type!r} has no CUDA graphs; use cuda")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(CALLS):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay(output: Any = output) -> Any:
        graph.replay()
        return output

    return replay


@torch.inference_mode()
def graph_times(call: Call, device: torch.device) -> dict[str, float]:
    """`graph_ms` of a replay in a row of replays, and `graph_bytes` that recording takes: replays allocate nothing."""
    found: dict[str, Call] = {}
    memory = peak_memory(lambda: found.update(replay=record_graph(call, device)), device)
    spent = warm_up(found["replay"], device)
    count = min(max(round(EFFORT.in_a_row / 3 / spent), 2), 200)
    rows = [seconds_in_a_row(found["replay"], count, device) for _ in range(3)]
    return {"graph_ms": 1e3 * median(rows), "graph_bytes": memory}


def with_graphs(calls: Mapping[str, Call], device: torch.device) -> dict[str, Any]:
    """`timed` and `graph_times` of each that runs, or why it does not."""
    calls, found = usable(calls)
    found |= timed(calls, device) if calls else {}
    for name, call in calls.items():
        found[name] |= graph_or_reason(call, device)
    return found


def graph_or_reason(call: Call, device: torch.device) -> dict[str, Any]:
    """`graph_times`, or `no_graph`: why there is none."""
    try:
        return graph_times(call, device)
    except Exception as error:
        return {"no_graph": refused(error)["error"]}


@torch.inference_mode()
def count_kernels(call: Call, device: torch.device) -> dict[str, Any]:
    """`kernels` and `copies` (with fills) that one call starts, and the names that come most often.

    Raises:
        ValueError: there is no GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"device {device.type!r} starts no kernels; use cuda")
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    names = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    counts: dict[str, int] = {}
    for name in names:
        short = name.split("<")[0].removeprefix("void ")[:60]
        counts[short] = counts.get(short, 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])[:8]
    return {"kernels": len(names) - len(copies), "copies": len(copies), "most": dict(most)}
