"""The evaluation loop: several variants of one model over one data set, on any number of processes.

The data are read and prepared once, and every variant sees the same batches. Sums stay local and are reduced once at
the end, so the result does not depend on the number of processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .environment import available_cores


class Task(Protocol):
    """What the loop must know about a dense-prediction task."""

    num_sums: int

    def encode(self, sample: dict) -> dict[str, Any]:
        """One sample as model input `pixel_values` (3, h, w) and whatever `decode` and `score` need."""

    def decode(self, outputs: Any, items: Sequence[dict]) -> list[Tensor]:
        """Predictions at the size of the labels, one per item, from the model's output on a batch."""

    def score(self, prediction: Tensor, item: dict) -> Tensor:
        """Additive sums of one image, float64 (num_sums,); the last is 1, or 0 where the label has no valid pixel."""

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Metrics from the sums over all images; NaN where no image counted."""


@dataclass(frozen=True)
class Variant:
    """One way to run a model: the model object and the input resolution.

    Attributes:
        name: Row name.
        model: Dense or accelerated model.
        scale: Input side relative to the image processor's output.
        multiple: The scaled side is rounded to this, normally the patch size.
    """

    name: str
    model: nn.Module
    scale: float = 1.0
    multiple: int = 1

    @property
    def eager(self) -> nn.Module:
        """The model without the wrapper of `torch.compile`, which hides its work from counters and observers."""
        return getattr(self.model, "_orig_mod", self.model)

    def with_eager(self) -> Variant:
        return replace(self, model=self.eager)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Input size at which this variant runs an image of (height, width)."""
        if self.scale == 1:
            return height, width
        return tuple(max(round(s * self.scale / self.multiple), 1) * self.multiple for s in (height, width))

    def inputs(self, pixel_values: Tensor) -> Tensor:
        """Model input (B, 3, h', w') from the image processor's (B, 3, h, w), in the model's dtype."""
        height, width = pixel_values.shape[-2:]
        size = self.size(height, width)
        if size != (height, width):
            pixel_values = F.interpolate(pixel_values, size, mode="bicubic", antialias=True)
        return pixel_values.to(next(self.model.parameters()).dtype)

    def __call__(self, pixel_values: Tensor):
        return self.model(pixel_values=self.inputs(pixel_values))


class EncodedDataset(Dataset):
    """Applies `task.encode` in the data loader's workers."""

    def __init__(self, samples: Sequence[dict], task: Task):
        self.samples, self.task = samples, task

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.task.encode(self.samples[index])

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """A whole batch, which rendered scenes produce faster than its items one by one."""
        read = getattr(self.samples, "__getitems__", None)
        samples = read(indices) if read else [self.samples[i] for i in indices]
        return [self.task.encode(sample) for sample in samples]


def make_accelerator(cpu: bool = False) -> Accelerator:
    """Accelerator whose data loaders give every sample to exactly one process; on CPUs the processes share all cores.

    Raises:
        ValueError: The launcher was asked for several processes but started one, as
            `accelerate launch --cpu --num_processes 2` does.
    """
    accelerator = Accelerator(cpu=cpu, dataloader_config=DataLoaderConfiguration(even_batches=False))
    asked = _launched_processes()
    if asked > accelerator.num_processes:
        raise ValueError(
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


def same_size(items: Iterable[dict]) -> list[list[dict]]:
    """Items grouped by the size of their `pixel_values`: image processors that keep the aspect ratio give several."""
    groups: dict[tuple, list[dict]] = {}
    for item in items:
        groups.setdefault(tuple(item["pixel_values"].shape), []).append(item)
    return list(groups.values())


def progress_bar(enabled: bool = True) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=not enabled)


@torch.inference_mode()
def evaluate_variants(
    variants: Sequence[Variant],
    samples: Sequence[dict],
    task: Task,
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
) -> Tensor:
    """Additive sums of every variant over a data set.

    Returns:
        Float64 tensor (variants, num_sums) on the CPU, summed over all processes.
    """
    loader = DataLoader(
        EncodedDataset(samples, task), batch_size=batch_size, num_workers=num_workers, collate_fn=list, shuffle=False
    )
    loader = accelerator.prepare(loader)
    sums = torch.zeros(len(variants), task.num_sums, dtype=torch.float64)
    with progress_bar(accelerator.is_main_process) as progress:
        bar = progress.add_task("evaluating", total=len(loader))
        for batch in loader:
            for items in same_size(batch):
                pixel_values = torch.stack([item["pixel_values"] for item in items])
                for row, variant in zip(sums, variants, strict=True):
                    predictions = task.decode(variant(pixel_values), items)
                    row += torch.stack([task.score(p, i).cpu() for p, i in zip(predictions, items, strict=True)]).sum(
                        0
                    )
            progress.advance(bar)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu()
    return sums
