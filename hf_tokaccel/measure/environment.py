"""What a result depends on besides its settings: machine, versions, commit, command."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("hf_tokaccel", "torch", "torchvision", "transformers", "accelerate", "datasets", "evaluate", "numpy")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # Run from a source tree: the commit says more than a version would.


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_WRITTEN = (":(top,exclude)docs", ":(top,exclude)benchmarks/results", ":(top,exclude)README.md")


def git_commit() -> dict[str, str | bool] | None:
    """Commit of the source tree that this package was imported from, and whether what runs differs from it.

    Tables and results that an earlier command of the same session wrote do not run.
    """
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository: only count a tree that tracks this file.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_WRITTEN)),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _command() -> str:
    program = Path(sys.argv[0])
    if program.name in ("hf_tokaccel", "tokaccel"):
        return shlex.join([program.name, *sys.argv[1:]])
    if program.parts[-2:] == ("cli", "__main__.py"):
        return shlex.join(["hf_tokaccel", *sys.argv[1:]])
    return shlex.join(["python", os.path.relpath(program), *sys.argv[1:]])


GPU_STATE = "driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def describe_gpu(device: torch.device) -> dict:
    """What times on a CUDA GPU depend on: PyTorch's flags, versions, and driver and clocks as `nvidia-smi` says."""
    matmul = torch.backends.cuda.matmul
    return {
        "flags": {
            "matmul.allow_tf32": matmul.allow_tf32,
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "bf16_reduced_precision": matmul.allow_bf16_reduced_precision_reduction,
        },
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvidia-smi": gpu_state(device),
    }


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Driver, clocks, power limit and temperature now; None where there is no `nvidia-smi`. Nothing is changed."""
    # By its identity: the first GPU that PyTorch may use need not be the first of the machine.
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={GPU_STATE}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(GPU_STATE.split(","), (value.strip() for value in answer.split(",")), strict=True))


def describe_environment(device: torch.device | str = "cpu") -> dict:
    """Machine, versions, commit, date and command, ready for JSON."""
    device = torch.device(device)
    machine = {
        "processor": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    if device.type == "cuda":
        machine["gpu"] = describe_gpu(device)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "machine": machine,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))} | {"torch": torch.__version__},
        "git": git_commit(),
    }
