"""How many kernels the method launches on a GPU, counted without one: on fake tensors that only have a device.

python -m benchmarks.launches             eager
python -m benchmarks.launches --compiled  and after torch.compile, by the code that it generates; a minute, and writes
                                          benchmarks/results/launches-*.json, which docs/gpu.md shows
python -m benchmarks.launches --measured  beside what the profiler counts, on a machine that has a GPU

Eager, index tables are left out, since they are made once; a graph makes its own. `docs/gpu.md` has what was measured.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import ROOT, save, stamp
from benchmarks.method import CLUSTER_GRID, GRID, WIDTH, adaptive
from hf_tokaccel.clustering import functional, pulling, tiling
from hf_tokaccel.functional import cluster_tokens, plan_reconstruction, reconstruct_tokens

# The numbers depend on these files only.
PATHS = ["hf_tokaccel/clustering", "benchmarks/launches.py", "benchmarks/launches_compiled.py", "benchmarks/method.py"]
# Eager, compiled: what issue 17 asks for.
TARGETS = {"grid": (80, 35), "adaptive": (60, 25)}
# Kernels of operators that take more than one: what they copy first, or fill, and the steps of a sort.
KERNELS = {
    "sort": 3,
    "baddbmm": 2,
    "addmm": 2,
    "scatter": 2,
    "scatter_add": 2,
    "index_add": 2,
    "index_copy": 2,
    "constant_pad_nd": 2,
}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach", "alias"}


def grid_clusters(x: Tensor, temperature: float | str = 0.02, window: int | None = None) -> Tensor:
    """Five iterations, the plan and one reconstruction."""
    centroids = cluster_tokens(x, GRID, CLUSTER_GRID, inverse_temperature=temperature).centroids
    where = {} if window is None else {"window": window, "grid": GRID, "cluster_grid": CLUSTER_GRID}
    return reconstruct_tokens(centroids, plan_reconstruction(x, centroids, inverse_temperature=temperature, **where))


COUNT = CLUSTER_GRID[0] * CLUSTER_GRID[1]
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "grid": grid_clusters,
    "grid, auto": lambda x: grid_clusters(x, "auto"),
    "grid, plan in a window of 7": lambda x: grid_clusters(x, window=7),
    "adaptive": lambda x: adaptive(x, COUNT),
    "adaptive, one round of half": lambda x: adaptive(x, (x.shape[1] + 1) // 2, share=0.5),
    "adaptive, tiles of 16": lambda x: adaptive(x, COUNT, grid=GRID, tile=16),
}


class Launches(TorchDispatchMode):
    """Counts the kernels of what runs inside, on a GPU in eager mode."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if not (self.paused or func.is_view or func.namespace == "prim" or name in FREE):
            self.kernels[name] += self._kernels(name, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _kernels(name: str, args: tuple, kwargs: dict) -> int:
        if name == "topk":
            return 2 if kwargs.get("sorted", args[4] if len(args) > 4 else True) else 1
        if name == "cumsum" and args[0].dtype == torch.bool:
            return 2  # cast first
        return KERNELS.get(name, 1)

    def total(self) -> int:
        return sum(self.kernels.values())

    @contextlib.contextmanager
    def without_tables(self) -> Iterator[None]:
        """What is made once is not counted; fake tensors make it in every call."""

        def uncounted(function: Callable) -> Callable:
            def called(*args):
                self.paused = True
                try:
                    return function(*args)
                finally:
                    self.paused = False

            return called

        with contextlib.ExitStack() as stack:
            for module, name in itertools.product((functional, pulling, tiling), ("constant", "counting")):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, uncounted(getattr(module, name))))
            yield


def eager(function: Callable[[Tensor], Tensor], batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> Launches:
    """Kernels of a call in inference at ViT-L/16 640 x 640."""
    with FakeTensorMode(), torch.no_grad(), (launches := Launches()), launches.without_tables():
        function(torch.empty(batch, GRID[0] * GRID[1], WIDTH, dtype=dtype, device="cuda"))
    return launches


def measured(function: Callable[[Tensor], Tensor], compiled: bool) -> int:
    """Kernels, copies and fills that the profiler saw on a GPU in one call, the tables being there."""
    x = torch.randn(1, GRID[0] * GRID[1], WIDTH, dtype=torch.bfloat16, device="cuda")
    call = torch.compile(function, fullgraph=True) if compiled else function
    with torch.inference_mode():
        for _ in range(3):
            call(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call(x)
            torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="count what torch.compile makes, too")
    parser.add_argument("--measured", action="store_true", help="profile on this machine's GPU")
    parser.add_argument("--operators", action="store_true", help="print which operators the kernels are of")
    args = parser.parse_args()
    if args.measured and not torch.cuda.is_available():
        parser.error("--measured needs a GPU; leave it out for what is counted")
    table = Table(title="Kernels at ViT-L/16 640 x 640, 1600 to 784 tokens, bfloat16")
    columns = ["", "eager", "eager, batch 8", "to reach"]
    columns += ["compiled", "to reach"] if args.compiled else []
    columns += ["measured, eager", "measured, compiled"] if args.measured else []
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    console = Console(width=130)
    if args.compiled:
        from benchmarks.launches_compiled import compiled

        made = compiled(CASES, (1, GRID[0] * GRID[1], WIDTH))
    kernels = {}
    for name, function in CASES.items():
        counted = eager(function)
        kernels[name] = {"eager": counted.total(), "eager, batch 8": eager(function, 8).total()}
        goals = [str(goal) for goal in TARGETS.get(name, ("", ""))]
        cells = [*map(str, kernels[name].values()), goals[0]]
        if args.compiled:
            cells += [str(made[name]), goals[1]]
            kernels[name]["compiled"] = made[name]
        if args.measured:
            cells += [str(measured(function, False)), str(measured(function, True))]
        table.add_row(name, *cells)
        if args.operators:
            console.print(name, dict(counted.kernels.most_common()))
    console.print(table)
    if args.compiled:
        name = f"launches-torch{torch.__version__.split('+')[0]}"
        print(save(name, {"kernels": kernels, **stamp(PATHS, "cpu")}).relative_to(ROOT))


if __name__ == "__main__":
    main()
