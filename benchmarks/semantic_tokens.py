"""Images per second of classifiers with semantic tokens against the models they are made of, in one interleaved run.

python -m benchmarks.semantic_tokens                       all pairs, batch 1 and 32; writes benchmarks/results
python -m benchmarks.semantic_tokens --pairs STViT-DeiT-S --batches 1 --rounds 3    quick look
python -m benchmarks.semantic_tokens --processor-time      for a CPU that others use too: one thread, its own time
python -m benchmarks.semantic_tokens --device cuda --dtype bfloat16 --compile

Random weights: what is computed does not depend on them.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedConfig, SwinConfig, ViTConfig

import hf_tokaccel as ta
from benchmarks.common import interleaved, ratios, save, stamp, summary
from hf_tokaccel.measure.compilation import compile_model
from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.results.report import markdown_table

# The numbers below depend on these files only.
PATHS = ["hf_tokaccel/semantic", "benchmarks/semantic_tokens.py", "benchmarks/common.py"]
PATHS += [f"hf_tokaccel/models/{name}.py" for name in ("stvit", "stvit_swin")]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Pair:
    """A classifier with semantic tokens and the one that it is compared with.

    Attributes:
        base: name of the other.
        config: the other's configuration.
        accel: our setting.
        published: throughput gained on a GPU, as reports of the paper give it.
        target: images per second of ours by those of the base, on a CPU; None for none.
    """

    base: str
    config: PreTrainedConfig
    accel: dict[str, Any]
    published: str = ""
    target: float | None = None


def _swin(depth: int) -> SwinConfig:
    return SwinConfig(embed_dim=96, depths=[2, 2, depth, 2], num_heads=[3, 6, 12, 24], window_size=7, num_labels=1000)


def pairs() -> dict[str, Pair]:
    deit = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    released = {"recover": True, "formulation": "classification", "stem": "conv"}
    return {
        "STViT-DeiT-S": Pair("DeiT-S", deit, {"token_grid": 4}, "+105 %", 2.0),
        "STViT-Swin-T, 16 per window": Pair("Swin-T", _swin(6), {"token_grid": 4}, "about +20 %", 1.2),
        "STViT-Swin-T, 9 per window": Pair("Swin-T", _swin(6), {"token_grid": 3}, "", 1.2),
        "STViT-R-Swin-S": Pair("Swin-S", _swin(18), released, "+30 %"),
    }


@dataclass(frozen=True)
class Place:
    """Where and how the models run."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False
    clock: Callable[[], float] = time.perf_counter

    def build(self, config: PreTrainedConfig) -> nn.Module:
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(config).to(self.device, self.dtype).eval()
        return compile_model(model) if self.compiled else model

    def call(self, model: nn.Module, images: Tensor) -> Callable[[], object]:
        """What is timed: one batch, to its end."""

        def run() -> None:
            model(images)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)

        return run


@torch.inference_mode()
def measure(pair: Pair, batches: Sequence[int], rounds: int, place: Place) -> list[dict]:
    """One result per batch size; `speedup` is of images per second, within rounds."""
    config = ta.accelerate_config(pair.config, {"method": "semantic_tokens", **pair.accel})
    base, ours = place.build(pair.config), place.build(config)
    generator = torch.Generator().manual_seed(1)
    size = pair.config.image_size
    image = torch.randn(1, 3, size, size, generator=generator).to(place.device, place.dtype)
    gflops = [] if place.compiled else [count_gflops(model, image) for model in (base, ours)]
    results = []
    for batch in batches:
        images = image.repeat(batch, 1, 1, 1)
        times = interleaved({"base": place.call(base, images), "ours": place.call(ours, images)}, rounds, place.clock)
        result = {
            "batch": batch,
            "seconds": {name: summary(values) for name, values in times.items()},
            "images_per_second": {name: batch / summary(values)["median"] for name, values in times.items()},
            "speedup": ratios(times["base"], times["ours"]),
        }
        if place.device.type == "cpu" and pair.target is not None:
            result |= {"target": pair.target, "reached": result["speedup"]["median"] >= pair.target}
        results.append(result)
    shared = {"base": pair.base, "accel": config.accel, "published": pair.published, "gflops": gflops}
    return [shared | result for result in results]


COLUMNS = (
    "model",
    "batch",
    "base",
    "base, images/s",
    "images/s",
    "speed",
    "p25 to p75",
    "FLOPs",
    "published",
    "target",
)


def markdown(rows: dict[str, list[dict]]) -> str:
    """The table, with what each target says."""
    lines = []
    for name, results in rows.items():
        for row in results:
            speed, images = row["speedup"], row["images_per_second"]
            target = (
                f"{row['target']:.1f}x: {'reached' if row['reached'] else 'not reached'}" if "target" in row else ""
            )
            lines.append(
                [
                    name,
                    str(row["batch"]),
                    row["base"],
                    f"{images['base']:.1f}",
                    f"{images['ours']:.1f}",
                    f"{speed['median']:.2f}x",
                    f"{speed['p25']:.2f} to {speed['p75']:.2f}",
                    f"{row['gflops'][1] / row['gflops'][0] - 1:+.0%}" if row["gflops"] else "",
                    row["published"],
                    target,
                ]
            )
    return markdown_table(COLUMNS, lines, names=3)


def arguments(given: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.semantic_tokens", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", choices=list(pairs()), metavar="NAME", help=f"of {', '.join(pairs())}")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds; 2 or more")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--compile", action="store_true", help="both models by torch.compile")
    parser.add_argument("--processor-time", action="store_true", help="one thread of the CPU, and only its own time")
    parser.add_argument("--output", metavar="NAME", help="result file without .json, in benchmarks/results")
    args = parser.parse_args(given)
    if args.rounds < 2 or min(args.batches) < 1:
        parser.error(
            f"--rounds {args.rounds} --batches {' '.join(map(str, args.batches))} is not valid: at least 2 rounds, "
            "and 1 image or more in a batch, for example --rounds 5 --batches 1 32"
        )
    if args.processor_time and torch.device(args.device).type != "cpu":
        parser.error(f"--processor-time times a CPU, and --device is {args.device}: leave one of them out")
    return args


def main(given: Iterable[str] | None = None, known: dict[str, Pair] | None = None) -> Path:
    """Measures, prints the table and writes the result.

    Args:
        given: arguments, those of the command by default.
        known: the pairs, those of the paper by default.
    """
    args, known = arguments(given), known or pairs()
    start = time.perf_counter()
    threads = torch.get_num_threads()
    if args.processor_time:
        torch.set_num_threads(1)
    clock = time.thread_time if args.processor_time else time.perf_counter
    place = Place(torch.device(args.device), getattr(torch, args.dtype), args.compile, clock)
    rows = {}
    try:
        for name in args.pairs or known:
            rows[name] = measure(known[name], args.batches, args.rounds, place)
            print(f"{name}: {', '.join(_short(row) for row in rows[name])}", flush=True)
        result = stamp(PATHS, place.device)
    finally:
        torch.set_num_threads(threads)
    setting = {"device": args.device, "dtype": args.dtype, "compile": args.compile, "rounds": args.rounds}
    setting["clock"] = "processor time, 1 thread" if args.processor_time else "elapsed time"
    device = result["machine"]["device"].replace(" ", "-").lower()
    variant = "-compile" if args.compile else ""
    default = f"semantic_tokens-{device}-{args.dtype}{variant}-torch{torch.__version__.split('+')[0]}"
    path = save(args.output or default, {"setting": setting, "rows": rows, **result})
    print(f"\n{markdown(rows)}\n\n{os.path.relpath(path)}; {time.perf_counter() - start:.0f} s")
    return path


def _short(row: dict) -> str:
    return f"batch {row['batch']} {row['speedup']['median']:.2f}x"


if __name__ == "__main__":
    main()
