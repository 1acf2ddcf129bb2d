"""UperNet on a small Swin against the same with semantic tokens (STViT-R), trained alike: mIoU, GFLOPs, images/s.

python -m benchmarks.semantic_dense                     trains what is not trained yet; writes benchmarks/results
python -m benchmarks.semantic_dense --seeds 1 --stages 56:16:20 --output outputs/quick      quick look, not saved
python -m benchmarks.semantic_dense --device cuda --image-size 224 --patch-size 4 --width 96 --output outputs/gpu

Whatever is not an argument of this command goes to examples/train_upernet.py, the same for both backbones.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

import hf_tokaccel  # noqa: F401  registers the backbones
from benchmarks.common import ROOT, save, stamp
from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.measure.speed import time_interleaved
from hf_tokaccel.results.files import write_json
from hf_tokaccel.results.report import markdown_table
from hf_tokaccel.training.loop import last_checkpoint
from hf_tokaccel.training.segmentation import evaluate
from hf_tokaccel.upstream import attention_of

# The numbers below depend on these files only.
PATHS = ["hf_tokaccel/semantic", "hf_tokaccel/models/stvit_swin.py", "hf_tokaccel/scenes"]
PATHS += [f"hf_tokaccel/training/{name}.py" for name in ("loop", "scenes", "segmentation")]
PATHS += ["examples/train_upernet.py", "benchmarks/semantic_dense.py"]

SCRIPT = ROOT / "examples" / "train_upernet.py"
BACKBONES = {"swin": "Swin", "stvit_r": "STViT-R-Swin"}
TEST_SEED = 1  # of the scenes of the test split, which no training sees


def train(folder: Path, backbone: str, seed: int, device: str, options: list[str]) -> None:
    """Train one model into folder/model, or go on where an interrupted run stopped, or leave a finished one.

    Raises:
        SystemExit: if the folder holds a run of other options, or training fails.
    """
    command = [str(SCRIPT.relative_to(ROOT)), "--backbone", backbone, "--seed", str(seed), *options]
    command += ["--cpu"] if device == "cpu" else []
    note, model, work = folder / "command.json", folder / "model", folder / "work"
    if note.exists() and json.loads(note.read_text()) != command:
        raise SystemExit(
            f"{folder} holds another run: {shlex.join(json.loads(note.read_text()))}. Give other options a folder of "
            f"their own, for example --output {folder.parent}-2."
        )
    if (model / "training_log.jsonl").exists():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(command))
    command += ["--work", str(work), "--output", str(model)]
    command += ["--resume"] if last_checkpoint(work) else []
    print("python", shlex.join(command), flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
        raise SystemExit(f"training into {folder} failed; the same command goes on from its last checkpoint.")


def load(folder: Path, device: str) -> PreTrainedModel:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "model", dtype=torch.float32)
    return model.to(device).eval()


def score(folder: Path, device: str, scenes: int) -> dict:
    """The metrics of a trained model on the test split, and what its training took."""
    model = load(folder, device)
    processor, size = AutoImageProcessor.from_pretrained(folder / "model"), model.config.backbone_config.image_size
    values = evaluate(model, "test", TEST_SEED, scenes, size, processor)
    last = json.loads((folder / "model" / "training_log.jsonl").read_text().splitlines()[-1])
    return values | {"images": last["images"], "training_cpu_hours": last["cpu_hours"]}


def measure(models: dict[str, PreTrainedModel], batches: list[int], rounds: int) -> dict:
    """GFLOPs per image, and images/s of the models in turns, of the backbone alone and with the head."""
    any_model = next(iter(models.values()))
    size, device = any_model.config.backbone_config.image_size, any_model.device
    result = {"attention": {name: attention_of(m.backbone.config) for name, m in models.items()}}
    for part in ("backbone", "model"):
        parts = {name: model.backbone if part == "backbone" else model for name, model in models.items()}
        image = torch.zeros(1, 3, size, size, device=device)
        entry = {"gflops": {name: count_gflops(function, image) for name, function in parts.items()}, "speed": {}}
        for batch in batches:
            pixels = torch.rand(batch, 3, size, size, device=device)
            functions = [partial(function, pixels) for function in parts.values()]
            timings = time_interleaved(functions, device=device, rounds=rounds)
            entry["speed"][str(batch)] = {
                name: {
                    "images_per_second": batch / t.median,
                    "p10": batch / t.p90,
                    "p90": batch / t.p10,
                    "ratio": t.speedup,
                }
                for name, t in zip(parts, timings, strict=True)
            }
        result[part] = entry
    return result


def table(result: dict) -> str:
    """The result as Markdown."""
    cost, batches = result["cost"], list(result["cost"]["model"]["speed"])
    head = ["backbone", "mIoU, mean", "of each seed", "GFLOPs backbone", "GFLOPs model"]
    head += [f"images/s {part}, batch {batch}" for part in ("backbone", "model") for batch in batches]
    lines = []
    for name, label in BACKBONES.items():
        found = [run["miou"] for run in result["runs"][name]]
        row = [label, f"{statistics.mean(found):.3f}", ", ".join(f"{value:.3f}" for value in found)]
        for part in ("backbone", "model"):
            own, base = (cost[part]["gflops"][key] for key in (name, "swin"))
            row.append(f"{own:.2f} ({100 * (own / base - 1):+.0f} %)" if name != "swin" else f"{own:.2f}")
        for part in ("backbone", "model"):
            for batch in batches:
                speed = cost[part]["speed"][batch][name]
                ratio = f" ({speed['ratio']:.2f}x)" if name != "swin" else ""
                row.append(f"{speed['images_per_second']:.1f}{ratio}")
        lines.append(row)
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/semantic_dense", help="folder of the trained models")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scenes", type=int, default=512, help="of the test split")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="of the timed models")
    parser.add_argument("--rounds", type=int, default=30, help="of timing")
    args, options = parser.parse_known_args()
    result: dict = {"options": options, "scenes": args.scenes, "test_seed": TEST_SEED, "runs": {}}
    folders = {name: [Path(args.output).resolve() / f"{name}-{s}" for s in range(args.seeds)] for name in BACKBONES}
    for seed in range(args.seeds):
        for name in BACKBONES:
            train(folders[name][seed], name, seed, args.device, options)
    for name, own in folders.items():
        result["runs"][name] = [score(folder, args.device, args.scenes) for folder in own]
    models = {name: load(own[0], args.device) for name, own in folders.items()}
    result["cost"] = measure(models, args.batches, args.rounds)
    result |= stamp(PATHS, args.device)
    print(table(result))
    path = Path(args.output) / "result.json"
    write_json(path, result)
    if args.output == parser.get_default("output"):
        path = save("semantic_dense", result)
    print(path)


if __name__ == "__main__":
    main()
