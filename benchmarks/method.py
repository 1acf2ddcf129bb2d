"""What clustering and reconstruction cost, in units of a ViT-L layer, and how the cost grows with the image.

python -m benchmarks.method             all of it, about two minutes; writes benchmarks/results/method-*.json
python -m benchmarks.method --rounds 5  quick look
python -m benchmarks.method --device cuda  on a GPU, and without the growth, which is of a processor
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import ROOT, interleaved, ratios, save, stamp, summary
from benchmarks.workloads import adaptive, make_tokens
from hf_tokaccel.functional import (
    average_tokens,
    cluster_tokens,
    partition_tokens,
    plan_reconstruction,
    reconstruct_regions,
    reconstruct_tokens,
)
from hf_tokaccel.measure.memory import peak_memory

# The numbers below depend on these files only.
PATHS = ["hf_tokaccel/clustering", *(f"benchmarks/{name}.py" for name in ("method", "workloads", "common"))]

GRID, CLUSTER_GRID, WIDTH, ITERATIONS, NEIGHBORS = (40, 40), (28, 28), 1024, 5, 20
TARGETS = {5: 0.20, 7: 0.25}
ADAPTIVE_TARGET, TILE = 0.12, 16
SIDES, SCALING_WIDTH, SCALING_WINDOW = (32, 64, 128, 256), 256, 5
# What compares all with all.
QUADRATIC = ("global plan", "adaptive", "dense clustering")
DENSE_LIMIT = 8e9  # bytes that the dense form may take


def dense_near(grid: tuple[int, int], cluster_grid: tuple[int, int], window: int) -> Tensor:
    """(N, M) candidates, the mask of the dense form."""
    sides = []
    for size, count in zip(grid, cluster_grid, strict=True):
        index = torch.arange(count, dtype=torch.float32)[None, None]
        labels = F.interpolate(index, size=size, mode="nearest").flatten()
        sides.append((labels[:, None] - index[0]).abs() <= window // 2)
    return (sides[0][:, None, :, None] & sides[1][None, :, None]).reshape(grid[0] * grid[1], -1)


def dense_distances(x: Tensor, s: Tensor) -> Tensor:
    squares = x.square().sum(-1)[..., None] + s.square().sum(-1)[:, None]
    return squares.baddbmm_(x, s.transpose(1, 2), alpha=-2)


def dense_cluster(x: Tensor, grid: tuple[int, int], cluster_grid: tuple[int, int], near: Tensor) -> Tensor:
    """Clustering as released: all N x M distances in every iteration, the window only masks."""
    s = F.adaptive_avg_pool2d(x.unflatten(1, grid).permute(0, 3, 1, 2), cluster_grid).flatten(2).transpose(1, 2)
    for _ in range(ITERATIONS):
        a = dense_distances(x, s).mul_(-0.02).masked_fill_(~near, -math.inf).softmax(-1)
        s = (a / a.sum(1, keepdim=True).clamp(min=1e-16)).transpose(1, 2) @ x
    return s


def dense_reconstruct(x: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """Reconstruction as released: all N x M weights, those below the k-th set to zero, one dense product."""
    w = dense_distances(x, s).mul_(-0.02).exp_()
    w = w.masked_fill_(w < w.topk(NEIGHBORS)[0][..., -1:], 0)
    return F.normalize(w, dim=-1) @ z


def gather_einsum(z: Tensor, plan) -> Tensor:
    """A plan applied by the obvious gather of (B, N, k, C)."""
    return torch.einsum("bnk,bnkc->bnc", plan.weights, z[:, plan.indices[0]])


def adaptive_functions(x: Tensor) -> dict[str, Callable[[], object]]:
    count = CLUSTER_GRID[0] * CLUSTER_GRID[1]
    regions = partition_tokens(x, count)
    centroids = average_tokens(x, regions)
    return {
        "adaptive": lambda: adaptive(x, count),
        "adaptive, one round of half": lambda: adaptive(x, (x.shape[1] + 1) // 2, share=0.5),
        f"adaptive, tiles of {TILE}": lambda: adaptive(x, count, grid=GRID, tile=TILE),
        "adaptive partition": lambda: partition_tokens(x, count),
        "adaptive apply": lambda: reconstruct_regions(centroids, regions, tokens=x, centroids=centroids),
    }


def time_against_layer(rounds: int, device: torch.device) -> dict:
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTLayer

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=WIDTH, num_attention_heads=16, intermediate_size=4096, attn_implementation="sdpa")
    layer, sequence = ViTLayer(config).eval().to(device), torch.randn(1, GRID[0] * GRID[1] + 1, WIDTH, device=device)
    x = make_tokens(GRID, WIDTH).to(device)
    functions: dict[str, Callable[[], object]] = {"layer": lambda: layer(sequence)}
    errors = {}
    for window in TARGETS:
        near = dense_near(GRID, CLUSTER_GRID, window).to(device)
        s = cluster_tokens(x, GRID, CLUSTER_GRID, window=window).centroids
        plan = plan_reconstruction(x, s)

        def dense(near: Tensor = near) -> Tensor:
            s = dense_cluster(x, GRID, CLUSTER_GRID, near)
            return dense_reconstruct(x, s, s)

        def ours(window: int = window) -> Tensor:
            s = cluster_tokens(x, GRID, CLUSTER_GRID, window=window).centroids
            return reconstruct_tokens(s, plan_reconstruction(x, s))

        functions |= {
            f"dense, window {window}": dense,
            f"ours, window {window}": ours,
            f"cluster, window {window}": lambda w=window: cluster_tokens(x, GRID, CLUSTER_GRID, window=w),
        }
        errors[window] = ((ours() - dense()).abs().max() / dense().abs().max()).item()
    functions |= {
        "plan": lambda: plan_reconstruction(x, s),
        "plan, window 7": lambda: plan_reconstruction(x, s, window=7, grid=GRID, cluster_grid=CLUSTER_GRID),
        "plan and apply": lambda: reconstruct_tokens(s, plan_reconstruction(x, s)),
        "apply": lambda: reconstruct_tokens(s, plan),
        "apply by gather": lambda: gather_einsum(s, plan),
        **adaptive_functions(x),
    }
    result = {
        "setting": {"model": "ViT-L/16 640x640", "grid": GRID, "cluster_grid": CLUSTER_GRID, "width": WIDTH}
        | {"iterations": ITERATIONS, "neighbors": NEIGHBORS, "batch": 1, "dtype": "float32", "rounds": rounds},
        "largest difference from dense": errors,
    }
    threads = torch.get_num_threads()
    # The second clock is for machines that others use too: a busy core distorts anything that waits for all threads.
    clocks = [
        (f"elapsed time, {threads} threads", threads, time.perf_counter),
        ("processor time, 1 thread", 1, time.thread_time),
    ]
    if device.type != "cpu":
        clocks = [("elapsed time", threads, time.perf_counter)]
    for title, count, clock in clocks:
        torch.set_num_threads(count)
        times = interleaved(functions, rounds, clock, device)
        result[title] = {
            "seconds": {name: summary(values) for name, values in times.items()},
            "layers": {name: ratios(values, times["layer"]) for name, values in times.items()},
            "recomputing over reusing": ratios(times["plan and apply"], times["apply"]),
        }
    torch.set_num_threads(threads)
    return result


def scaling_case(kind: str, side: int) -> Callable[[], object]:
    grid, cluster_grid = (side, side), (round(0.7 * side), round(0.7 * side))
    x = make_tokens(grid, SCALING_WIDTH)
    if kind == "clustering":
        return lambda: cluster_tokens(x, grid, cluster_grid, window=SCALING_WINDOW)
    if kind.startswith("adaptive"):
        tiles = {"grid": grid, "tile": TILE} if kind.endswith("tiles") else {}
        return lambda: adaptive(x, side * side // 2, **tiles)
    if kind == "dense clustering":
        near = dense_near(grid, cluster_grid, SCALING_WINDOW)
        return lambda: dense_cluster(x, grid, cluster_grid, near)
    s = cluster_tokens(x, grid, cluster_grid, iterations=0).centroids
    if kind == "global plan":
        return lambda: plan_reconstruction(x, s)
    return lambda: plan_reconstruction(x, s, window=SCALING_WINDOW, grid=grid, cluster_grid=cluster_grid)


def dense_bytes(side: int) -> int:
    """Computed, not measured: the distances and the assignment, both N x M float32, alive at the same time."""
    return 2 * 4 * side**2 * round(0.7 * side) ** 2


def exponent(sides: list[int], values: list[float]) -> float:
    """Slope of log value over log tokens."""
    slope, _ = statistics.linear_regression([math.log(side**2) for side in sides], [math.log(v) for v in values])
    return slope


def time_scaling(rounds: int) -> dict:
    """Processor time of one thread, and peak memory of a fresh process; slow cases run once."""
    result, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in ("clustering", "window plan", "adaptive in tiles", *QUADRATIC):
        rows = []
        for side in SIDES:
            row = {"tokens": side**2, "clusters": round(0.7 * side) ** 2}
            if kind in QUADRATIC and dense_bytes(side) > DENSE_LIMIT:
                # The global plan would fit, being in chunks, but takes a minute.
                rows.append(row | ({"computed_bytes": dense_bytes(side)} if kind == "dense clustering" else {}))
                continue
            case = scaling_case(kind, side)
            if kind in QUADRATIC and side >= 128:
                start = time.thread_time()
                case()
                times = [time.thread_time() - start] * 2
            else:
                times = interleaved({kind: case}, rounds, time.thread_time)[kind]
            peak = subprocess.run(
                [sys.executable, "-m", "benchmarks.method", "--peak", kind, str(side)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            rows.append(row | {"seconds": summary(times), "peak_bytes": int(peak.stdout.split()[-1])})
        measured = [row for row in rows if "seconds" in row]
        sides = [math.isqrt(row["tokens"]) for row in measured]
        result[kind] = {
            "rows": rows,
            "time_exponent": exponent(sides, [row["seconds"]["median"] for row in measured]),
            "memory_exponent": exponent(sides, [row["peak_bytes"] for row in measured]),
        }
    torch.set_num_threads(threads)
    setting = {
        "width": SCALING_WIDTH,
        "window": SCALING_WINDOW,
        "iterations": ITERATIONS,
        "cluster_ratio_per_side": 0.7,
    }
    return {"setting": setting, "kinds": result}


def print_layers(console: Console, result: dict) -> None:
    for title, part in result.items():
        if "layers" not in part:
            continue
        table = Table(title=f"1600 to 784 tokens of width 1024, 5 iterations, k = 20, float32, batch 1\n{title}")
        for column in ("", "ms", "of a layer", "p25 to p75", "target"):
            table.add_column(column, justify="right" if column else "left")
        for name, seconds in part["seconds"].items():
            ratio = part["layers"][name]
            targets = {f"ours, window {w}": f"{target:.2f}" for w, target in TARGETS.items()}
            target = (targets | {"adaptive": f"{ADAPTIVE_TARGET:.2f}"}).get(name, "")
            spread = f"{ratio['p25']:.4f} to {ratio['p75']:.4f}"
            table.add_row(name, f"{1e3 * seconds['median']:.2f}", f"{ratio['median']:.4f}", spread, target)
        console.print(table)
        again = part["recomputing over reusing"]["median"]
        console.print(f"Recomputing the plan costs {again:.1f} times a reconstruction from a ready plan (target: 10).")
    console.print(f"Largest difference from the dense form, of the maximum: {result['largest difference from dense']}")


def print_scaling(console: Console, result: dict) -> None:
    table = Table(
        title=f"Growth with the image, width {SCALING_WIDTH}, window {SCALING_WINDOW}, processor time, 1 thread"
    )
    for column in ("", *(f"{side**2} tokens" for side in SIDES), "time ~ N^", "memory ~ N^"):
        table.add_column(column, justify="right" if column else "left")
    for kind, entry in result["kinds"].items():
        cells = []
        for row in entry["rows"]:
            if "seconds" in row:
                cells.append(f"{1e3 * row['seconds']['median']:.1f} ms, {row['peak_bytes'] / 1e6:.0f} MB")
            elif "computed_bytes" not in row:
                cells.append("not run")
            else:
                cells.append(f"not run: {row['computed_bytes'] / 1e9:.1f} GB computed")
        table.add_row(kind, *cells, f"{entry['time_exponent']:.2f}", f"{entry['memory_exponent']:.2f}")
    console.print(table)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the comparison with a layer")
    parser.add_argument("--only", choices=("layer", "scaling"), help="half of the benchmark; writes no result")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak = peak_memory(scaling_case(args.peak[0], int(args.peak[1])), torch.device("cpu"))
        if peak is None:
            raise SystemExit("memory is measured on Linux only; run with --only layer")
        print(peak)
        return
    console = Console(width=150)
    device = torch.device(args.device)
    if device.type != "cpu" and args.only == "scaling":
        parser.error(f"--only scaling is of a processor; with --device {device} leave it out")
    result = stamp(PATHS, device)
    if args.only != "scaling":
        result["layer"] = time_against_layer(args.rounds, device)
        print_layers(console, result["layer"])
    if args.only != "layer" and device.type == "cpu":
        result["scaling"] = time_scaling(max(3, args.rounds // 4))
        print_scaling(console, result["scaling"])
    if args.only is None:
        device = result["machine"]["device"].replace(" ", "-").lower()
        name = f"method-{device}-torch{result['versions']['torch'].split('+')[0]}"
        commit = (result["git"] or {}).get("commit", "no commit")[:10]
        console.print(f"{save(name, json.loads(json.dumps(result)))} at {commit}, changed since: {result['changed']}")


if __name__ == "__main__":
    main()
