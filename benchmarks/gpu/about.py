"""What a result depends on, and what this GPU can do at most."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.timing import EFFORT, record_graph, warm_up
from hf_tokaccel.measure.environment import describe_environment, git_commit, gpu_state
from hf_tokaccel.measure.speed import seconds_in_a_row


def slug(device: torch.device, commit: str | None) -> str:
    """Of a device, the version of torch and the commit, in the name of a file."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    name = f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-torch{torch.__version__.split('+')[0]}"
    git = git_commit()
    commit = commit or (git["commit"] if git else "")
    return f"{name}-{commit[:7]}".rstrip("-")


def environment(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Machine, versions, commit and command."""
    found = describe_environment(device)
    if commit is not None and found["git"] is None:
        found["git"] = {"commit": commit, "dirty": False}
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """Which kernels of attention PyTorch may choose and, of a GPU, its properties; the environment has the rest."""
    found: dict[str, Any] = {
        "flags": {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn attention": torch.backends.cuda.cudnn_sdp_enabled(),
        }
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["properties"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2": getattr(properties, "L2_cache_size", None),
        }
    return found


@torch.inference_mode()
def ceilings(device: torch.device) -> dict[str, Any]:
    """Copies, products and launches: what any time can be held against."""
    big = device.type == "cuda"
    side, length, launches = (8192, 2**31, 500) if big else (256, 2**20, 20)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    small = torch.zeros(8, device=device)

    def chain() -> None:
        for _ in range(launches):
            small.add_(1)

    found = {
        "bf16 product, TFLOP/s": 2 * side**3 / _seconds(partial(torch.mm, a, b), device) / 1e12,
        "copy, TB/s read and written": 2 * length / _seconds(partial(target.copy_, source), device) / 1e12,
        "launch, us": 1e6 * _seconds(chain, device) / launches,
    }
    if big:
        found["launch in a graph, us"] = 1e6 * _seconds(record_graph(chain, device), device) / launches
        found["nvidia-smi after"] = gpu_state(device)
    return found


def _seconds(call, device: torch.device) -> float:
    spent = warm_up(call, device)
    return seconds_in_a_row(call, min(max(round(EFFORT.in_a_row / spent), 2), 100), device)
