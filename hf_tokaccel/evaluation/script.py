"""What the evaluation scripts share: their options, and the way from options to table, JSON and pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

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
from .models import DTYPES
from .processes import make_accelerator
from .task import Task

LEAST = {"batch_size": 1, "rounds": 1, "limit": 1, "pictures": 0, "num_workers": 0, "seed": 0}


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


Load = Callable[[argparse.Namespace, torch.device], Loaded]


def common_parser(
    description: str, *, what: str, datasets: str, output: str, without: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Options that all scripts have.

    Args:
        description: Of the script.
        what: Kind of model.
        datasets: What may stand after `--dataset`.
        output: Default folder for results.
        without: Options of data sets that mean nothing here: `--split`, `--image-column`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help=f"Hub id or folder of a {what} model (default: the reference model of this package)")
    add("--dataset", default="scenes", help=datasets)
    if "--split" not in without:
        add("--split", help="of the data set (default: the one that is scored, or test)")
    if "--image-column" not in without:
        add("--image-column", default="image", help="of a `datasets` table")
    add("--limit", type=int, help="number of images at most (default: all, or 200 scenes)")
    add("--skip-bad", action="store_true", help="leave out image files that cannot be read, and say so")
    settings = "JSON, key=value,..., released:NAME or recommended:1.5; repeatable; none: only dense"
    add("--accel", action="append", metavar="SETTING", help=settings)
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="processes that load data")
    add("--dtype", default="float32", help=", ".join(DTYPES))
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help="use torch.compile")
    add("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    add("--rounds", type=int, default=10, help="timed rounds")
    add("--pictures", type=int, default=4, help="images in the picture")
    add("--images", nargs="*", metavar="PATH", help="show these photographs instead (default: some of scikit-image)")
    add("--seed", type=int, default=0, help="picks the scenes and the draws of confidence intervals")
    add("--output", type=Path, default=Path(output), help="folder for JSON, Markdown and pictures")
    add("--json", action="store_true", help="print the results as JSON for other programs instead of a table")
    return parser


class Job:
    """The options, checked and loaded; the user's mistakes show here, before any work."""

    def __init__(self, args: argparse.Namespace, load: Load):
        for name, least in LEAST.items():
            if (value := getattr(args, name)) is not None and value < least:
                raise ValueError(
                    f"--{name.replace('_', '-')} {value} must be at least {least}, for example {least + 4}"
                )
        self.args = args
        self.settings = None if args.accel is None else parse_accels(args.accel)
        if self.settings == [] and args.images is not None:
            raise ValueError("--images compares with an accelerated model: leave out --accel none, or name a setting")
        self.photographs = None if args.images is None else open_photographs(args.images)
        self.accelerator: Accelerator = make_accelerator(args.cpu)
        set_seed(args.seed)
        loaded = load(args, self.accelerator.device)
        self.name, self.task, self.dataset = loaded.name, loaded.task, loaded.dataset
        if self.dataset is None:
            self.samples = [{"image": image, "name": name} for name, image in self.photographs.items()]
        else:
            self.samples = self.dataset.samples
        self._enter(loaded)

    def _enter(self, loaded: Loaded) -> None:
        """The rows of the table."""
        args, settings = self.args, self.settings
        pixel_values = first_batch(self.samples, self.task, 1).to(self.accelerator.device)
        pixel_values = self.task.model_input(pixel_values)
        if settings is None and loaded.stored is not None:
            settings = [TokenClusteringConfig.from_dict(loaded.stored)]
        elif settings is None:
            settings = default_settings(loaded.dense, tuple(pixel_values.shape[-2:]), self.task)
            settings = settings_to_show(settings) if self.dataset is None else settings
        settings = resolve_accels(settings, loaded.dense.config, tuple(pixel_values.shape[-2:]))
        prepare = partial(compile_model, backend=args.compile) if args.compile else lambda model: model
        subject = Subject(loaded.dense, tuple(pixel_values.shape[-2:]), pixel_values)
        rows, self.notes = rivals_of(subject, settings, {} if self.dataset is None else EVALUATION)
        self.entries = [replace(row, model=prepare(row.model)) for row in rows]


def evaluate_dataset(job: Job, console: Console) -> None:
    """Fill the table on all processes; the first one writes and draws."""
    args, samples = job.args, job.samples
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "rounds": args.rounds}
    comparison = compare(job.entries, samples, job.task, job.accelerator, skip_bad=args.skip_bad, **options)
    if comparison is None:
        return
    result = Result(
        task=job.task.name,
        model=job.name,
        dataset=job.dataset.name,
        num_images=len(samples) - len(comparison.skipped),
        num_processes=job.accelerator.num_processes,
        protocol=job.task.protocol.to_dict(),
        options=options | {"dtype": args.dtype, "compile": args.compile, "seed": args.seed},
        environment=describe_environment(job.accelerator.device),
        rows=comparison.rows,
        notes=job.notes,
        skipped=list(comparison.skipped.values()),
    )
    result.save(args.output / "result.json")
    if args.json:
        print((args.output / "result.json").read_text(encoding="utf-8"), end="")
    (args.output / "result.md").write_text(to_markdown(result), encoding="utf-8")
    console.print(to_table(result), crop=False)
    if result.rows[0].classes:
        console.print(to_class_table(result))
    shown = result.row_to_show()
    if args.pictures and shown is not None:
        good = [i for i in range(len(samples)) if i not in comparison.skipped][: args.pictures]
        variants = job.entries[0].variant, job.entries[shown].variant
        panels = [job.task.panel(*variants, samples[i]) for i in good]
        job.task.draw_samples(panels, args.output / "scenes.png", result.heading(shown))


def show_photographs(job: Job, console: Console) -> None:
    """One figure per accelerated setting, and how far its maps are from the dense ones."""
    dense, *fast = (entry.variant for entry in job.entries)
    for number, variant in enumerate(fast):
        panels = {sample["name"]: job.task.panel(dense, variant, sample) for sample in job.samples}
        path = job.args.output / ("photographs.png" if len(fast) == 1 else f"photographs-{number + 1}.png")
        said = job.task.draw_photographs(panels, path, f"{job.name}: dense against {variant.name}")
        for name, difference in said.items():
            console.print(f"{variant.name}, {name}: {difference}")


def exit_status(work: Callable[[], object]) -> int:
    """Runs the work of a script: 0, or 2 and one line on the user's mistake."""
    try:
        work()
    except ValueError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def run_script(parser: argparse.ArgumentParser, load: Load, argv: list[str] | None = None) -> int:
    """A whole script; returns its exit status: 2 and one line on the user's mistakes.

    Args:
        parser: From `common_parser`, with the script's own options.
        load: What the script does with those.
        argv: Arguments; None takes those of the command line.
    """
    args = parser.parse_args(argv)
    return exit_status(partial(_run, args, load))


def _run(args: argparse.Namespace, load: Load) -> None:
    start = time.perf_counter()
    job = Job(args, load)
    console = Console(width=None if sys.stdout.isatty() else 170, stderr=args.json)
    if job.accelerator.is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
    if job.dataset is not None:
        evaluate_dataset(job, console)
    elif job.accelerator.is_main_process:
        show_photographs(job, console)
    if job.accelerator.is_main_process:
        console.print(f"{time.perf_counter() - start:.0f} s; results are in {args.output}")
    job.accelerator.end_training()
