"""Computes the GFLOPs of the papers' tables in each table's own convention, beside what our models cost.

python -m benchmarks.paper_gflops all                                    every table
python -m benchmarks.paper_gflops all --markdown docs/paper_gflops.md    and write it

Exits with 1 where a row is more than 0.1 % off.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import torch
import transformers

from . import TABLES
from .report import markdown, wrap
from .table import TOLERANCE, Table

INTRODUCTION = (
    "# The published GFLOPs",
    "Written by `python -m benchmarks.paper_gflops all --markdown docs/paper_gflops.md`.",
    "Each table of the papers counts in its own way: `published` and `computed` are in the unit named above a table, "
    "and tables cannot be compared with one another. `computed` is a closed form: the multiply-adds of the layers at "
    "that setting plus what that table's counter adds. It does not run our acceleration.",
    "`our model` is what `torch.utils.flop_counter` says of the accelerated hf_tokaccel model at that setting, in "
    "GFLOPs at 2 per multiply-add in every table. Matrix products, convolutions and attention count; element-wise "
    "work and the `embedding_bag` that rebuilds tokens do not. It is counted on tensors without data, by the path "
    "taken on a CPU. The two columns `of dense` say what is left of the dense cost, published and ours.",
)


def load(name: str) -> Table:
    return import_module(f".{name}", __package__).TABLE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "benchmarks.paper_gflops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=(*TABLES, "all"))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables here")
    args = parser.parse_args(arguments)
    sections, off = [], []
    for name in TABLES if args.table == "all" else (args.table,):
        table = load(name)
        checked = table.check()
        off += [f"{name}: {line.row} computed {line.computed:.3f}" for line in checked if not line.fits]
        sections.append(markdown(table, checked))
        print(sections[-1], end="\n\n", flush=True)
    if args.markdown:
        versions = f"Versions: torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}."
        args.markdown.write_text("\n\n".join([*map(wrap, INTRODUCTION), versions, *sections]) + "\n")
    for line in off:
        print(f"more than {TOLERANCE:.1%} off: {line}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
