"""Quality at equal speed on rendered scenes: token clustering as released and ours against plain rivals.

python -m benchmarks.quality                        the three reference models, about 45 minutes on two cores
python -m benchmarks.quality --only depth           one of them; the others in the result file stay
python -m benchmarks.quality --model DIR            a model of one's own, trained on scenes
python -m benchmarks.quality --quick                a look within minutes; writes to outputs/quality
python -m benchmarks.quality tables                 docs/quality.md and its plots anew from the committed results

A sweep on validation scenes picks settings; other scenes, those of the test split, judge them.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.common import RESULTS, ROOT
from hf_tokaccel.checkpoint import DTYPES
from hf_tokaccel.checks import UserError
from hf_tokaccel.evaluation.script import exit_status
from hf_tokaccel.results.files import write_json

from .measure import TASKS, run, task_of
from .page import show, write_page, write_plots

QUICK = {"validation": 8, "limit": 16, "rounds": 3}
FULL = {"validation": 32, "limit": 256, "rounds": 10}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("action", nargs="?", choices=("run", "tables"), default="run")
    add("--only", choices=tuple(TASKS), action="append", help="a reference model; repeatable")
    add("--model", metavar="DIR", help="folder of a model that was trained on scenes, in place of those")
    add("--validation", type=int, help=f"scenes of the sweep (default: {FULL['validation']})")
    add("--limit", type=int, help=f"test scenes (default: {FULL['limit']})")
    add("--rounds", type=int, help=f"timed rounds (default: {FULL['rounds']})")
    add("--batch-size", type=int, default=8)
    add("--num-workers", type=int, default=0, help="processes that render scenes")
    add("--dtype", default="float32", choices=DTYPES[1:])
    add("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    add("--seed", type=int, default=0, help="of the scenes and of the draws")
    add("--quick", action="store_true", help="few settings and scenes")
    add("--output", type=Path, help="folder for the result and its page (default: that of the committed ones)")
    return parser


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fills in what `--quick` decides.

    Raises:
        ValueError: an option that makes no sense.
    """
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("validation", "limit", "rounds", "batch_size"):
        least = 2 if name in ("validation", "limit") else 1
        if getattr(args, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(args, name)} must be at least {least}, for example {8 * least}"
            )
    if args.model is not None and args.only:
        raise UserError("--only names reference models: leave it out beside --model")
    if args.quick and args.output is None:
        args.output = ROOT / "outputs" / "quality"
    return args


def result_path(folder: Path, cpu: bool) -> Path:
    device = "cpu" if cpu or not torch.cuda.is_available() else torch.cuda.get_device_name().replace(" ", "-").lower()
    return folder / f"quality-{device}-torch{torch.__version__.split('+')[0]}.json"


def add_result(path: Path, name: str, part: dict) -> None:
    """Puts one model into the file of its machine, beside what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    write_json(path, {"models": models | {name: part}})


def work(args: argparse.Namespace) -> None:
    console = Console(width=None if sys.stdout.isatty() else 170)
    args = complete(args)
    jobs = {name: name for name in args.only or TASKS}
    if args.model is not None:
        jobs = {Path(args.model).resolve().name: task_of(args.model)}
    results, page = (args.output,) * 2 if args.output else (RESULTS, ROOT / "docs")
    if args.action == "run":
        path = result_path(results, args.cpu)
        for name, task in jobs.items():
            part = run(task, args, console)
            add_result(path, name, part)
            show(name, part, console)
        console.print(f"{path}")
    write_plots(results, page)
    console.print(f"{write_page(results, page)}")


def main(argv: list[str] | None = None) -> int:
    return exit_status(partial(work, build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
