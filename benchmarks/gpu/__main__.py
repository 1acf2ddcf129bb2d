"""Everything that is to be known about a GPU, in at most nine minutes on one.

python -m benchmarks.gpu                         on a GPU; writes benchmarks/results/gpu-*.jsonl, a line for each step
python -m benchmarks.gpu --quick --device cpu    the same with tiny models; writes benchmarks/results/gpu-quick-*.jsonl
python -m benchmarks.gpu --device cpu --only work      GFLOPs of the models, which need no GPU; a few minutes
python -m benchmarks.gpu.page                    docs/gpu.md anew from what is in benchmarks/results

Needs torch, transformers, accelerate, safetensors, numpy, pillow and scipy only. A step that fails, or for which too
little time is left, says so in its line, and the others run. What takes a processor more than the GPU (compiling,
counting kernels) runs in processes beside the first steps, which measure no time.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import RESULTS
from benchmarks.gpu import about, attention, clustering, models, parity
from benchmarks.gpu.steps import Steps, forget
from benchmarks.gpu.timing import EFFORT
from benchmarks.workloads import PLACES, TINY_PLACES

QUICK_FAMILIES = ("segmenter", "dpt", "dinov3_vit", "mask2former", "sam")
QUICK_CASES = ("segmenter", "sam")  # with adaptive rows and a smaller image, and without
ATTENTION = [(1, 785), (1, 1601), (8, 785), (8, 1601)]
MODELS_FIRST = 3  # before anything is compiled
COMPILED_CASE = "segmenter-l-640"
COMPILED_MODES = ((8, "default"), (1, "reduce-overhead"))
SIDE_ENDS = 0.32  # of the time, for processes beside the first steps


class Plan:
    """Which steps there are, most telling and cheapest first.

    Args:
        steps: that run and write.
        quick: tiny models.
    """

    def __init__(self, steps: Steps, quick: bool) -> None:
        self.steps, self.device, self.quick = steps, steps.device, quick
        self.places = TINY_PLACES if quick else PLACES
        self.families = list(QUICK_FAMILIES) if quick else parity.families()
        self.attention = [(1, 9)] if quick else ATTENTION
        self.batches = (1, 2) if quick else (1, 8)
        self.cases = models.tiny_cases(QUICK_CASES) if quick else models.CASES
        self.compiled_case = QUICK_FAMILIES[0] if quick else COMPILED_CASE
        self.compiled_rows = [row for row in models.COMPILED if row in self.cases[self.compiled_case].rows()]

    def first(self) -> None:
        """What measures no time, besides what the machine is."""
        run, device = self.steps.run, self.device
        run("about", partial(about.machine, device), 0, 30)
        run("ceilings", partial(about.ceilings, device), 20, 30)
        place = next(iter(self.places.values()))
        run("exactness", partial(clustering.exactness, place, device), 20, 30)
        run("deterministic", partial(clustering.deterministic, place, device), 20, 30)
        for family in self.families:
            run(f"parity {family}", partial(parity.check_family, family, device), 20, 25)
        if device.type != "cuda":  # no process is beside this one
            for name in [self.compiled_case] if self.quick else self.cases:
                self.work(name)

    def alone(self) -> None:
        """Attention and the method by themselves."""
        for batch, keys in self.attention:
            name = f"attention, batch {batch}, {keys} keys"
            self.steps.run(name, partial(attention.times, batch, 16, keys, self.device), 15, 25)
        for name, place in self.places.items():
            for batch in self.batches:
                title = f"method {name}, batch {batch}"
                self.steps.run(title, partial(clustering.times, place, batch, self.device), 15, 25)

    def eager(self, names: list[str]) -> None:
        for name in names:
            for batch in self.batches:
                title = f"model {name}, batch {batch}"
                self.steps.run(title, partial(models.times, self.cases[name], batch, self.device), 25, 45)

    def compiled(self) -> None:
        case = self.cases[self.compiled_case]
        for batch, mode in COMPILED_MODES:
            rows, name = (
                models.Compiled(case, batch, mode, self.device),
                f"{self.compiled_case}, batch {batch}, {mode}",
            )
            for row in self.compiled_rows:
                self.steps.run(f"compile {name}, {row}", partial(rows.add, row), 40, 90)
            self.steps.run(f"compiled {name}", rows.times, 5, 30)
            del rows
            forget()

    def compiled_method(self) -> None:
        for batch in self.batches:
            for name, place in self.places.items():
                title = f"compiled method {name}, batch {batch}"
                self.steps.run(title, partial(clustering.compiled_times, place, batch, self.device), 25, 60)

    def all(self) -> None:
        """What measures time."""
        self.alone()
        names = list(self.cases)
        self.eager(names[:MODELS_FIRST])
        self.compiled()
        self.eager(names[MODELS_FIRST:])
        self.compiled_method()

    # Beside the first steps, each in a process of its own.

    def sides(self) -> list[str]:
        found = [f"model {batch} {mode} {row}" for batch, mode in COMPILED_MODES for row in self.compiled_rows]
        return [*found, "kernels", "work 0", "work 1", *(f"method {name}" for name in self.places)]

    def side(self, name: str) -> None:
        """Counts, or compiles what will be compiled again, then quickly."""
        kind, _, what = name.partition(" ")
        if kind == "kernels":
            for name, place in self.places.items():
                self.steps.run(
                    f"kernels of the method {name}", partial(clustering.kernels, place, self.device), 10, 60
                )
        elif kind == "work":
            for name in list(self.cases)[int(what) :: 2]:
                self.work(name)
        elif kind == "method":
            place = self.places[what]
            title = f"kernels of the compiled method {what}"
            self.steps.run(title, partial(clustering.compiled_kernels, place, self.device), 10, 200)
            ahead = partial(clustering.compile_ahead, place, self.batches[1], self.device)
            self.steps.run(f"compile ahead {name}", ahead, 10, 200)
        else:
            batch, mode, row = what.split(" ", 2)
            rows = models.Compiled(self.cases[self.compiled_case], int(batch), mode, self.device)
            self.steps.run(f"compile ahead {name}", partial(rows.add, row), 10, 200)

    def work(self, name: str) -> None:
        """Kernels and GFLOPs of a model."""
        self.steps.run(f"work of the model {name}", partial(models.work, self.cases[name], self.device), 10, 60)


def share_what_is_compiled() -> None:
    """One place for all processes, so that what one of them compiles is compiled for the others."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "hf_tokaccel-inductor"))


def start_sides(plan: Plan, ends: float) -> list[subprocess.Popen]:
    """Processes that write lines of their own into the same file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    base = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], f"--ends={ends}"]
    return [subprocess.Popen([*base, f"--side={name}"], env=environment) for name in plan.sides()]


def wait_for(processes: list[subprocess.Popen], ends: float) -> None:
    """Ends those that take longer: nothing may run beside what measures time."""
    for process in processes:
        try:
            process.wait(max(ends - time.time(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=520, help="for everything")
    parser.add_argument("--only", action="append", default=[], help="beginning of the names of steps; may be repeated")
    parser.add_argument("--commit", help="of this tree, where git cannot tell")
    parser.add_argument("--ends", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    begins = time.time()
    ends = args.ends or begins + args.seconds
    device = torch.device(args.device)
    counts = bool(args.only) and all(name.startswith("work") for name in args.only)
    if not args.quick and not counts and device.type != "cuda":
        parser.error(f"--device {args.device} would take hours without --quick, for example --quick --device cpu")
    path = args.out / f"gpu-{'quick-' if args.quick else ''}{about.slug(device, args.commit)}.jsonl"
    if args.ends is None:
        args.out.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    if args.quick:
        EFFORT.warm_up = EFFORT.alone = EFFORT.in_a_row = 0.01
    if device.type == "cuda":
        share_what_is_compiled()
        torch.set_num_threads(2)  # of tiny models on the processor, which other processes use too
    gc.freeze()  # no search for garbage need look through what imports have made
    steps = Steps(path, ends, device, ("environment", *args.only) if args.only else ())
    plan = Plan(steps, args.quick)
    if args.side is not None:
        plan.side(args.side)
        return
    if args.ends is None:
        steps.run("environment", partial(about.environment, device, args.commit), 0, 30)
    # Only the first process has others beside it, not one that goes on after an error.
    quiet = ends - (1 - SIDE_ENDS) * args.seconds
    sides = start_sides(plan, quiet) if args.ends is None and device.type == "cuda" and not args.only else []
    plan.first()
    wait_for(sides, quiet)
    if args.ends is not None:
        time.sleep(max(quiet - time.time(), 0))  # those of the process before this one end by then
    plan.all()
    print(f"{path}: {time.time() - (ends - args.seconds):.0f} s")


if __name__ == "__main__":
    main()
