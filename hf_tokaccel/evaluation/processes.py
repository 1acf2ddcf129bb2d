"""Starting up on any number of processes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DataLoaderConfiguration

from ..checks import UserError
from ..measure.environment import available_cores


def make_accelerator(cpu: bool = False, **options: Any) -> Accelerator:
    """Accelerator whose data loaders give every sample to exactly one process; on CPUs the processes share all cores.

    Args:
        cpu: Run on the CPU even where there is a GPU.
        options: Further arguments of `Accelerator`.

    Raises:
        ValueError: The launcher was asked for several processes but started one, as
            `accelerate launch --cpu --num_processes 2` does.
    """
    accelerator = Accelerator(cpu=cpu, dataloader_config=DataLoaderConfiguration(even_batches=False), **options)
    asked = _launched_processes()
    if asked > accelerator.num_processes:
        raise UserError(
            f"accelerate launch was asked for {asked} processes but started {accelerator.num_processes}, "
            f"as it does for --cpu; on CPUs use: accelerate launch --multi_gpu --num_processes {asked} SCRIPT --cpu"
        )
    # The simple launcher sets a rendezvous address, but no rank, when its config file asks for several processes.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and accelerator.num_processes == 1:
        warnings.warn("the launcher prepared for several processes, but only one is running", stacklevel=2)
    if accelerator.device.type == "cpu" and _launcher_set_threads():
        torch.set_num_threads(max(available_cores() // local_processes(), 1))
    return accelerator


def local_processes() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _launcher() -> psutil.Process | None:
    """The accelerate or torch launcher that started this process, if one did."""
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent else []
    except psutil.Error:
        return None
    names = {Path(word).name for word in words[:4]}
    return parent if names & {"accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch"} else None


def _launcher_set_threads() -> bool:
    """Whether a launcher, and not the user, chose the number of threads: always one, which wastes cores."""
    launcher = _launcher()
    try:
        return launcher is not None and "OMP_NUM_THREADS" not in launcher.environ()
    except psutil.Error:
        return False


def _launched_processes() -> int:
    """Number after `--num_processes` on the command line of the launcher above us, or 1."""
    launcher = _launcher()
    words = launcher.cmdline() if launcher else []
    for i, word in enumerate(words):
        flag, _, value = word.replace("-", "_").partition("=")
        if flag == "__num_processes":
            value = value or (words[i + 1] if i + 1 < len(words) else "")
            return int(value) if value.isdigit() else 1
    return 1
