"""The evaluation loop: several variants of one model over one data set, on any number of processes.

The data are read and prepared once, and every variant sees the same batches. Each process keeps the sums of its own
images; they are put together once at the end, in the order of the data set, so the result does not depend on the
number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..checks import UserError
from ..images import UnreadableError
from ..measure.progress import progress_bar
from ..measure.variant import Variant
from .task import Task

MAX_NAMED = 5  # bad images that an error message names


@dataclass
class Scores:
    """What the loop found.

    Attributes:
        sums: Sums of every variant and image in the order of the data set, float64 (variants, images, num_sums) on
            the CPU; zero where an image was skipped.
        skipped: Why, by the index of the skipped image.
        kept: What `task.keep` gave for every variant, by the index of the image.
    """

    sums: Tensor
    skipped: dict[int, str]
    kept: list[dict[int, Any]]


class EncodedDataset(Dataset):
    """Applies `task.encode` in the data loader's workers; what cannot be used becomes an item with `error`."""

    def __init__(self, samples: Sequence[dict], task: Task):
        self.samples, self.task = samples, task

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self._item(index, lambda: self.samples[index])

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """A whole batch, which rendered scenes produce faster than its items one by one."""
        read = getattr(self.samples, "__getitems__", None)
        if read is None:
            return [self[index] for index in indices]
        return [self._item(i, lambda sample=sample: sample) for i, sample in zip(indices, read(indices), strict=True)]

    def _item(self, index: int, read: Callable[[], dict]) -> dict:
        # An exception would lose its type and gain a traceback on its way out of a worker process.
        try:
            return self.task.encode(read()) | {"index": index}
        except ValueError as error:  # Image processors have no type of their own for what they cannot take.
            return {"index": index, "error": str(error), "skippable": isinstance(error, UnreadableError)}


def same_size(items: Iterable[dict]) -> list[list[dict]]:
    """Items grouped by the size of their `pixel_values`: image processors that keep the aspect ratio give several."""
    groups: dict[tuple, list[dict]] = {}
    for item in items:
        groups.setdefault(tuple(item["pixel_values"].shape), []).append(item)
    return list(groups.values())


@torch.inference_mode()
def evaluate_variants(
    variants: Sequence[Variant],
    samples: Sequence[dict],
    task: Task,
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    skip_bad: bool = False,
) -> Scores:
    """Additive sums of every variant and image of a data set, the same on every process.

    Args:
        variants: What runs.
        samples: Items that `task.encode` takes.
        task: What is measured.
        accelerator: From `make_accelerator`; all of its processes must call this.
        batch_size: Images per batch and process.
        num_workers: Data loader workers per process.
        skip_bad: Leave out files that cannot be read.

    Raises:
        ValueError: Images that cannot be used, all named, unless they may be skipped; or no image has a valid label.
    """
    loader = DataLoader(
        EncodedDataset(samples, task), batch_size=batch_size, num_workers=num_workers, collate_fn=list, shuffle=False
    )
    loader = accelerator.prepare(loader)
    sums = torch.zeros(len(variants), len(samples), task.num_sums, dtype=torch.float64)
    errors: list[dict] = []
    kept: list[tuple[int, int, Any]] = []
    with progress_bar(accelerator.is_main_process) as progress:
        bar = progress.add_task("evaluating", total=len(loader))
        for batch in loader:
            errors += [item for item in batch if "error" in item]
            if any(not (skip_bad and item["skippable"]) for item in errors):
                progress.update(bar, description="checking the other images")
                batch = []
            for items in same_size(item for item in batch if "error" not in item):
                pixel_values = torch.stack([item["pixel_values"] for item in items])
                for number, (row, variant) in enumerate(zip(sums, variants, strict=True)):
                    predictions = task.decode(task.run(variant, pixel_values), items)
                    for prediction, item in zip(predictions, items, strict=True):
                        row[item["index"]] = task.score(prediction, item).cpu()
                        if (record := task.keep(prediction, item)) is not None:
                            kept.append((number, item["index"], record))
            progress.advance(bar)
    if accelerator.num_processes > 1:
        # Every image belongs to one process and is zero on the others, so this sum rounds nothing.
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu()
        errors, kept = gather_object(errors), gather_object(kept)
    skipped = _check_errors(errors, len(samples), skip_bad)
    if sums[0, :, -1].sum() == 0:
        raise UserError(f"none of the {len(samples)} images has a valid label; {task.no_label_hint}")
    kept.sort(key=lambda entry: entry[:2])
    return Scores(sums, skipped, [{i: record for v, i, record in kept if v == n} for n in range(len(variants))])


def _check_errors(errors: Sequence[dict], count: int, skip_bad: bool) -> dict[int, str]:
    """Why each skipped image was skipped, by index; ValueError where it may not be."""
    errors = sorted(errors, key=lambda item: item["index"])
    fatal = [item for item in errors if not (skip_bad and item["skippable"])]
    if fatal:
        named = "; ".join(item["error"] for item in fatal[:MAX_NAMED])
        more = f"; and {len(fatal) - MAX_NAMED} more" if len(fatal) > MAX_NAMED else ""
        advice = "; repair them, or leave them out with --skip-bad" if all(i["skippable"] for i in fatal) else ""
        raise UserError(f"{len(fatal)} of {count} images cannot be used: {named}{more}{advice}")
    if errors and len(errors) == count:
        raise UserError(f"all {count} images would be skipped, the first because {errors[0]['error']}")
    return {item["index"]: item["error"] for item in errors}
