"""From options to table, JSON and pictures: what the evaluations of all tasks share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from ..checks import UserError
from ..images import open_photographs
from ..measure.compilation import compile_model
from ..measure.environment import describe_environment
from ..results.rows import Result
from ..results.tables import to_class_table, to_markdown, to_table
from ..rivals.build import EVALUATION, Subject, rivals_of
from ..rivals.settings import default_settings, settings_to_show
from ..settings.clustering import TokenClusteringConfig
from ..tuning.text import parse_accels, resolve_accels
from .compare import compare, first_batch
from .options import Options
from .processes import make_accelerator
from .task import Task


@dataclass
class Loaded:
    """What a script knows of its task once its own options are read.

    Attributes:
        name: Of the model, for the report.
        dense: Dense model.
        stored: Accelerated setting stored with it, or None.
        task: What is measured.
        dataset: With `name` and `samples`; None where photographs are shown.
    """

    name: str
    dense: torch.nn.Module
    stored: dict | None
    task: Task
    dataset: Any | None


def load(options: Options, device: torch.device) -> Loaded:
    """Model and data of an evaluation.

    Raises:
        ValueError: A mistake of the user.
    """
    return import_module(f".{options.task}.script", __package__).load(options, device)


class Job:
    """The options, checked and loaded; the user's mistakes show here, before any work."""

    def __init__(self, options: Options):
        self.options = options
        self.settings = None if options.accel is None else parse_accels(options.accel)
        if self.settings == [] and options.images is not None:
            raise UserError("--images compares with an accelerated model: leave out --accel none, or name a setting")
        self.photographs = None if options.images is None else open_photographs(options.images)
        self.accelerator: Accelerator = make_accelerator(options.cpu)
        set_seed(options.seed)
        loaded = load(options, self.accelerator.device)
        self.dtype = str(next(loaded.dense.parameters()).dtype).removeprefix("torch.")
        self.name, self.task, self.dataset = loaded.name, loaded.task, loaded.dataset
        if self.dataset is None:
            self.samples = [{"image": image, "name": name} for name, image in self.photographs.items()]
        else:
            self.samples = self.dataset.samples
        self._enter(loaded)

    def _enter(self, loaded: Loaded) -> None:
        """The rows of the table."""
        options, settings = self.options, self.settings
        pixel_values = first_batch(self.samples, self.task, 1).to(self.accelerator.device)
        pixel_values = self.task.model_input(pixel_values)
        if settings is None and loaded.stored is not None:
            settings = [TokenClusteringConfig.from_dict(loaded.stored)]
        elif settings is None:
            settings = default_settings(loaded.dense, tuple(pixel_values.shape[-2:]), self.task)
            settings = settings_to_show(settings) if self.dataset is None else settings
        settings = resolve_accels(settings, loaded.dense.config, tuple(pixel_values.shape[-2:]))
        prepare = partial(compile_model, backend=options.compile) if options.compile else lambda model: model
        subject = Subject(loaded.dense, tuple(pixel_values.shape[-2:]), pixel_values)
        rows, self.notes = rivals_of(subject, settings, {} if self.dataset is None else EVALUATION)
        self.entries = [replace(row, model=prepare(row.model)) for row in rows]


def evaluate_dataset(job: Job, console: Console) -> None:
    """Fill the table on all processes; the first one writes and draws."""
    options, samples = job.options, job.samples
    given = {"batch_size": options.batch_size, "num_workers": options.num_workers, "rounds": options.rounds}
    comparison = compare(job.entries, samples, job.task, job.accelerator, skip_bad=options.skip_bad, **given)
    if comparison is None:
        return
    result = Result(
        task=job.task.name,
        model=job.name,
        dataset=job.dataset.name,
        num_images=len(samples) - len(comparison.skipped),
        num_processes=job.accelerator.num_processes,
        protocol=job.task.protocol.to_dict(),
        options=given | {"dtype": job.dtype, "compile": options.compile, "seed": options.seed},
        environment=describe_environment(job.accelerator.device),
        rows=comparison.rows,
        notes=job.notes,
        skipped=list(comparison.skipped.values()),
    )
    result.save(options.output / "result.json")
    if options.json:
        print((options.output / "result.json").read_text(encoding="utf-8"), end="")
    (options.output / "result.md").write_text(to_markdown(result), encoding="utf-8")
    console.print(to_table(result), crop=False)
    if result.rows[0].classes:
        console.print(to_class_table(result))
    shown = result.row_to_show()
    if options.pictures and shown is not None:
        good = [i for i in range(len(samples)) if i not in comparison.skipped][: options.pictures]
        variants = job.entries[0].variant, job.entries[shown].variant
        panels = [job.task.panel(*variants, samples[i]) for i in good]
        job.task.draw_samples(panels, options.output / "scenes.png", result.heading(shown))


def show_photographs(job: Job, console: Console) -> None:
    """One figure per accelerated setting, and how far its maps are from the dense ones."""
    dense, *fast = (entry.variant for entry in job.entries)
    for number, variant in enumerate(fast):
        panels = {sample["name"]: job.task.panel(dense, variant, sample) for sample in job.samples}
        path = job.options.output / ("photographs.png" if len(fast) == 1 else f"photographs-{number + 1}.png")
        said = job.task.draw_photographs(panels, path, f"{job.name}: dense against {variant.name}")
        for name, difference in said.items():
            console.print(f"{variant.name}, {name}: {difference}")


def exit_status(work: Callable[[], object]) -> int:
    """Runs the work of a script: 0, or 2 and one line on the user's mistake."""
    try:
        work()
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def run(options: Options) -> None:
    """A whole evaluation, on all processes.

    Raises:
        ValueError: A mistake of the user.
    """
    start = time.perf_counter()
    job = Job(options)
    console = Console(width=None if sys.stdout.isatty() else 170, stderr=options.json)
    if job.accelerator.is_main_process:
        options.output.mkdir(parents=True, exist_ok=True)
    if job.dataset is not None:
        evaluate_dataset(job, console)
    elif job.accelerator.is_main_process:
        show_photographs(job, console)
    if job.accelerator.is_main_process:
        console.print(f"{time.perf_counter() - start:.0f} s; results are in {options.output}")
    job.accelerator.end_training()
