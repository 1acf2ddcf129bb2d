"""Quality, speed and cost of several variants of a model: the numbers of a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .loop import EncodedDataset, Task, evaluate_variants, progress_bar, same_size
from .report import Row
from .rivals import Entry
from .speed import count_gflops, time_interleaved


def compile_model(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """`torch.compile` for static shapes, with room for many variants of one model class.

    Raises:
        ValueError: An unknown backend.
    """
    backends = torch._dynamo.list_backends(exclude_tags=())
    if backend not in backends:
        raise ValueError(f"compile backend {backend!r} must be one of {', '.join(backends)}; for example inductor")
    # The limit counts all objects that share one forward, and each variant is one.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    return torch.compile(model, backend=backend, dynamic=False)


def first_batch(samples: Sequence[dict], task: Task, batch_size: int) -> Tensor:
    """Real model input for timing: images of one size from the start of a data set, (B, 3, h, w)."""
    encoded = EncodedDataset(samples, task)
    items = encoded.__getitems__(list(range(min(batch_size, len(encoded)))))
    return torch.stack([item["pixel_values"] for item in max(same_size(items), key=len)])


def compare(
    entries: Sequence[Entry],
    samples: Sequence[dict],
    task: Task,
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    rounds: int = 10,
) -> list[Row] | None:
    """Measure every entry; the first is what the others are compared with.

    Args:
        entries: What is compared.
        samples: Items that `task.encode` takes.
        task: What is measured.
        accelerator: From `make_accelerator`; all of its processes must call this.
        batch_size: Images per batch and process.
        num_workers: Data loader workers per process.
        rounds: Timed rounds over all entries.

    Returns:
        Rows in the order of the entries on the main process, None on the others.

    Raises:
        ValueError: No image has a valid label.
    """
    variants = [entry.variant for entry in entries]
    sums = evaluate_variants(variants, samples, task, accelerator, batch_size=batch_size, num_workers=num_workers)
    metrics = [task.metrics(row) for row in sums]
    if sums[0, -1] == 0:
        raise ValueError(f"none of the {len(samples)} images has a valid label; check unit, range and crop")
    if not accelerator.is_main_process:
        return None
    pixel_values = first_batch(samples, task, batch_size).to(accelerator.device)
    calls = [partial(variant.model, pixel_values=variant.inputs(pixel_values)) for variant in variants]
    with progress_bar() as progress:
        bar = progress.add_task("timing", total=len(calls) * (rounds + 2))
        advance = partial(progress.advance, bar)
        timings = time_interleaved(calls, device=accelerator.device, rounds=rounds, warmup=2, advance=advance)
    gflops = [count_gflops(variant.with_eager(), pixel_values[:1]) for variant in variants]
    return [
        Row(
            name=entry.variant.name,
            kind=entry.kind,
            accel=entry.accel,
            input_size=entry.variant.size(*pixel_values.shape[-2:]),
            metrics=quality,
            gflops=cost,
            gflops_ratio=cost / gflops[0],
            images_per_second=len(pixel_values) / timing.median,
            speedup=timing.speedup,
            seconds={"median": timing.median, "p10": timing.p10, "p90": timing.p90},
            group=entry.group,
        )
        for entry, quality, cost, timing in zip(entries, metrics, gflops, timings, strict=True)
    ]
