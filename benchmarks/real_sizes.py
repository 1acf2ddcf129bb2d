"""Rivals at the sizes that people run: named experiments, their results, and the tables in docs/benchmarks.md.

python -m benchmarks.real_sizes list
python -m benchmarks.real_sizes segmenter-l-640            every rival in float32 with SDPA; writes benchmarks/results
python -m benchmarks.real_sizes segmenter-l-640-modes      with and without SDPA, bfloat16 and torch.compile
python -m benchmarks.real_sizes all --rounds 5
python -m benchmarks.real_sizes tables                     docs/benchmarks.md anew from what is in benchmarks/results

Every run rewrites the tables too. Weights are random: agreement says nothing here, the rest does not depend on them.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.common import RESULTS, ROOT
from hf_tokaccel.bench import BenchResult, bench, parse_mode, to_markdown, to_table
from hf_tokaccel.bench.subject import load_subject
from hf_tokaccel.results.marked import write_marked

PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Experiment:
    """One benchmark.

    Attributes:
        model: architecture or reference model.
        modes: in which every row runs.
        batch_size: images.
        boldest: only the boldest of the model's settings with its rivals, where many modes would take hours.
        about: what it shows.
    """

    model: str
    modes: tuple[str, ...] = ("float32,sdpa",)
    batch_size: int = 1
    boldest: bool = False
    about: str = ""


_LARGE = {
    "segmenter-l-640": "Segmenter ViT-L/16, the paper's settings",
    "dpt-large-384": "DPT-L",
    "dpt-large-480x640": "DPT-L on NYUv2's size",
    "depth-anything-l-518": "Depth Anything L",
    "dinov3-l-1024": "DINOv3 L",
    "mask2former-swin-l-1152": "Mask2Former on Swin-L, the paper's settings",
    "sam-h-1024": "the vision encoder of SAM ViT-H, the paper's settings",
}
# What each adds to the first, and all together; `hf_tokaccel bench --every-mode` has every combination.
_MODES = ("float32,sdpa", "float32,eager", "bfloat16,sdpa", "float32,sdpa,compile", "bfloat16,sdpa,compile")
EXPERIMENTS = {
    **{name: Experiment(name, about=about) for name, about in _LARGE.items()},
    "segmenter-l-640-modes": Experiment(
        "segmenter-l-640", _MODES, boldest=True, about="without SDPA, in bfloat16, with torch.compile, and both"
    ),
    "segmenter-l-640-int8": Experiment(
        "segmenter-l-640", ("float32,sdpa", "int8,sdpa"), boldest=True, about="dynamic int8 and clusters together"
    ),
    "small-depth": Experiment("depth", about="a small model at batch 1: where little is to be won"),
    "small-depth-batch-8": Experiment("depth", batch_size=8, about="the same, eight images at once"),
    "small-depth-int8": Experiment("depth", ("float32,sdpa", "int8,sdpa"), about="dynamic int8 and clusters together"),
}


def run(name: str, rounds: int, warmup: int, device: str | None, console: Console) -> Path:
    experiment, start = EXPERIMENTS[name], time.perf_counter()
    subject = load_subject(experiment.model, device=device, batch_size=experiment.batch_size)
    result = bench(
        subject.model,
        subject.images,
        subject.settings[-1:] if experiment.boldest else subject.settings,
        modes=[parse_mode(text) for text in experiment.modes],
        rounds=rounds,
        warmup=warmup,
        name=experiment.model,
    )
    result.notes += subject.notes
    console.print(to_table(result))
    where = result.environment["machine"]["device"].replace(" ", "-").lower()
    path = RESULTS / f"real_sizes-{name}-{where}-torch{torch.__version__.split('+')[0]}.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    result.save(path)
    console.print(f"{path.relative_to(ROOT)}; {time.perf_counter() - start:.0f} s")
    return path


def tables() -> str:
    """All results as Markdown, in the order of the experiments."""
    parts = []
    for name, experiment in EXPERIMENTS.items():
        for path in sorted(RESULTS.glob(f"real_sizes-{name}-*-torch*.json")):
            # Names of experiments begin with those of others.
            if re.fullmatch(rf"real_sizes-{re.escape(name)}-(cpu|nvidia.*)-torch[\d.]+\.json", path.name):
                parts.append(f"### {name}: {experiment.about}\n\n{to_markdown(BenchResult.load(path))}")
    return "\n".join(parts) or "No results yet.\n"


def write_page() -> None:
    """The tables between the marks of docs/benchmarks.md; the text around them stays."""
    write_marked(PAGE, {"real_sizes": tables().strip()}, "Benchmarks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all", "list", "tables"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device")
    args = parser.parse_args()
    console = Console(width=200)
    if "list" in args.names:
        for name, experiment in EXPERIMENTS.items():
            console.print(f"{name}: {experiment.about}; {len(experiment.modes)} modes", markup=False)
        return
    names = list(EXPERIMENTS) if "all" in args.names else [name for name in args.names if name != "tables"]
    for name in names:
        run(name, args.rounds, args.warmup, args.device, console)
    write_page()


if __name__ == "__main__":
    main()
