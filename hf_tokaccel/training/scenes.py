"""What the scripts that train the reference models share: arguments, the loop over rendered scenes, checkpoints.

Batches are counted, not shuffled: step s always sees the same scenes, so that `--resume` continues exactly.
"""

import argparse
import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from ..scenes import SceneDataset

# Encoders of the usual sizes, for `--size`; each script adds what its decoder needs. Such models need a GPU.
_LARGE = {"layers": 12, "patch_size": 16, "image_size": 512, "stages": "256:32:12000,512:16:6000", "warmup": 1000}
VIT_SIZES = {
    "vit-s": {"width": 384, "heads": 6, "mlp": 1536, "lr": 5e-4, **_LARGE},
    "vit-b": {"width": 768, "heads": 12, "mlp": 3072, "lr": 3e-4, **_LARGE},
}


@dataclass
class Task:
    """What one script trains.

    Attributes:
        build: Arguments to an untrained model.
        loss: Model output and batch of `SceneDataset` items, on the device, to a scalar.
        evaluate: Model, split, seed, number of scenes, side in pixels, and a processor or None, to named numbers.
        processor: Side in pixels to the image processor that is saved with the model.
        materials: Of the rendered scenes.
        finish: Changes the trained model before it is exported; checkpoints stay as they were.
        adamw: Parts of names of matrices in blocks that AdamW trains even where Muon trains the others.
    """

    build: Callable[[argparse.Namespace], nn.Module]
    loss: Callable[[Any, dict[str, Tensor]], Tensor]
    evaluate: Callable[..., dict[str, Any]]
    processor: Callable[[int], Any]
    materials: str = "any"
    finish: Callable[[nn.Module, argparse.Namespace], None] = lambda model, args: None
    adamw: tuple[str, ...] = ()


def parser(description: str, stages: str, work: str, sizes: dict[str, int]) -> argparse.ArgumentParser:
    """Return the arguments of a training script; sizes are its own integers with their defaults."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--stages", default=stages, help="size:batch:steps, ...; sizes in multiples of 32")
    result.add_argument("--output", help="folder for the trained model")
    result.add_argument("--work", default=work, help="folder for checkpoint, snapshot and log")
    result.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    result.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"))
    result.add_argument("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    result.add_argument("--lr", type=float, default=1e-3, help="highest learning rate of AdamW")
    result.add_argument(
        "--muon-lr", type=float, help="train the matrices of the blocks by Muon with this rate instead"
    )
    result.add_argument("--seed", type=int, default=0)
    common = {"image-size": 192, "width": 128, "layers": 12, "heads": 4, "mlp": 512, "warmup": 200, "workers": 0}
    counts = {"log-every": 50, "save-every": 250, "val-scenes": 64, "stop-at": -1, "eval-scenes": 512, "eval-seed": 1}
    for name, value in (common | counts | sizes).items():
        result.add_argument(f"--{name}", type=int, default=value)
    result.add_argument("--evaluate", metavar="DIR", help="print the metrics of a trained model on the test split")
    return result


def parse_sized(
    arguments: argparse.ArgumentParser, sizes: dict[str, dict[str, Any]], argv: list[str] | None = None
) -> argparse.Namespace:
    """Parse with one more option, `--size`: its values are the defaults of other options, which win where given."""
    said = "width, layers and whatever else goes with them, for a GPU; other options change single values of it"
    arguments.add_argument("--size", choices=tuple(sizes), help=said)
    chosen, _ = arguments.parse_known_args(argv)
    arguments.set_defaults(**sizes.get(chosen.size, {}))
    return arguments.parse_args(argv)


@torch.no_grad()
def place(embeddings: Tensor, grid: int) -> None:
    """Write waves over the places of a grid into position embeddings (1, 1 + grid * grid, C), a class token first.

    Embeddings that start at zero learn slowly, and most of an indoor scene is a matter of position.
    """
    angle = torch.arange(grid)[:, None] / grid * math.pi * 2.0 ** torch.linspace(0, 5, embeddings.shape[-1] // 4)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    table = torch.cat([wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)], dim=2).flatten(0, 1)
    embeddings[0, 1:, : table.shape[1]] = 0.3 * table


def export(model: nn.Module, folder: Path, processor: Any) -> None:
    """Write model and processor; weights are stored in half precision, the config asks for single precision."""
    # Batch normalisation also counts its steps, which half precision could not.
    state = {k: (v.half() if v.is_floating_point() else v).cpu() for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)


def print_metrics(model: nn.Module, processor: Any, args: argparse.Namespace, task: Task) -> None:
    """Print what `--evaluate` asks for, as one line of JSON."""
    values = task.evaluate(model, "test", args.eval_seed, args.eval_scenes, args.image_size, processor)
    print(json.dumps({"scenes": args.eval_scenes, "size": args.image_size, **values}))


class Run:
    """One training run: its stages (size, batch, steps), its log, and checkpoints to resume from."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, task: Task):
        self.args, self.accelerator, self.task = args, accelerator, task
        self.stages = [tuple(map(int, s.split(":"))) for s in args.stages.split(",")]
        self.total = sum(steps for _, _, steps in self.stages)
        self.step, self.images, self.cpu_before, self.began = 0, 0, 0.0, time.time()
        self.work = Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.log_path = self.work / "training_log.jsonl"

    def rate(self, highest: float) -> float:
        """Return the learning rate of the current step: linear warm-up, then cosine to zero."""
        warm = min(1.0, (self.step + 1) / max(1, self.args.warmup))
        return highest * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def cpu_hours(self) -> float:
        used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return self.cpu_before + used / 3600

    def log(self, **values) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open("a") as file:
                file.write(json.dumps({"step": self.step, "images": self.images, **values}) + "\n")

    def validate_and_save(self, model: nn.Module, size: int) -> dict[str, Any]:
        """Validate, then write a checkpoint beside the last one and swap: an interruption leaves one intact."""
        plain = self.accelerator.unwrap_model(model)
        values = self.task.evaluate(plain, "validation", self.args.seed, self.args.val_scenes, size)
        hours = {"wall_hours": round((time.time() - self.began) / 3600, 3), "cpu_hours": round(self.cpu_hours(), 3)}
        self.log(size=size, validation=values, **hours)
        fresh, last = self.work / "checkpoint.new", self.work / "checkpoint"
        self.accelerator.save_state(str(fresh))
        if self.accelerator.is_main_process:
            state = {"step": self.step, "images": self.images, "cpu_hours": self.cpu_hours()}
            (fresh / "run.json").write_text(json.dumps(state))
            shutil.rmtree(last, ignore_errors=True)
            os.replace(fresh, last)
            export(plain, self.work / "snapshot", self.task.processor(self.args.image_size))
        return values

    def load(self) -> None:
        folder = self.work / "checkpoint"
        if not folder.is_dir():
            raise SystemExit(f"--resume: there is no checkpoint in {folder}; start without --resume.")
        self.accelerator.load_state(str(folder))
        state = json.loads((folder / "run.json").read_text())
        self.step, self.images, self.cpu_before = state["step"], state["images"], state["cpu_hours"]
        lines = self.log_path.read_text().splitlines()
        self.log_path.write_text("".join(f"{i}\n" for i in lines if json.loads(i)["step"] <= self.step))

    def loaders(self):
        """Yield (size, loader) for what is left of each stage; scenes are numbered through, none is seen twice."""
        first_step = first_scene = 0
        for size, batch, steps in self.stages:
            skip = max(0, self.step - first_step)
            stop = first_scene + steps * batch
            if skip < steps:
                data = SceneDataset("train", stop, (size, size), self.args.seed, self.task.materials)
                batches = BatchSampler(range(first_scene + skip * batch, stop), batch, drop_last=True)
                yield size, DataLoader(data, batch_sampler=batches, num_workers=self.args.workers)
            first_step, first_scene = first_step + steps, stop


def _optimizers(model: nn.Module, args: argparse.Namespace, task: Task) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon (https://kellerjordan.github.io/posts/muon) for the matrices of the blocks."""
    parameters = dict(model.named_parameters())
    matrices = [k for k, v in parameters.items() if args.muon_lr and v.ndim == 2 and ".layers." in k]
    matrices = [k for k in matrices if not any(part in k for part in task.adamw)]
    optimizers = []
    if matrices:
        blocks = [parameters.pop(k) for k in matrices]
        optimizers.append(torch.optim.Muon(blocks, lr=args.muon_lr, weight_decay=0.02))
    return [*optimizers, torch.optim.AdamW(parameters.values(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.02)]


def train(args: argparse.Namespace, task: Task) -> None:
    """Train as the arguments of `parser` say, and write the model to `args.output`."""
    # Processes share each batch, so that their number changes neither the steps nor the scenes.
    share = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu, dataloader_config=share)
    set_seed(args.seed)
    run, model = Run(args, accelerator, task), task.build(args)
    if accelerator.device.type == "cpu":
        # With so few tokens, plain matrix products beat the fused kernel's backward pass on CPUs.
        model.set_attn_implementation("eager")
    accelerator.print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {run.total} steps")
    model, *optimizers = accelerator.prepare(model, *_optimizers(model, args, task))
    if args.resume:
        run.load()
    elif accelerator.is_main_process:
        run.log_path.write_text("")
    bar = tqdm(total=run.total, initial=run.step, disable=not accelerator.is_main_process, mininterval=5)
    recent = []
    for size, loader in run.loaders():
        for batch in accelerator.prepare(loader):
            model.train()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = run.rate(optimizer.defaults["lr"])
            with accelerator.autocast():
                output = model(pixel_values=batch["image"].float() / 127.5 - 1)
            loss = task.loss(output, batch)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.step, run.images = run.step + 1, run.images + len(batch["image"]) * accelerator.num_processes
            recent.append(loss.item())
            bar.update()
            if run.step % args.log_every == 0:
                mean = sum(recent) / len(recent)
                bar.set_postfix(loss=f"{mean:.3f}", size=size)
                run.log(size=size, loss=round(mean, 4), norm=round(float(norm), 3), lr=round(run.rate(args.lr), 7))
                recent = []
            if run.step % args.save_every == 0 or run.step == run.total:
                bar.write(f"step {run.step}: {run.validate_and_save(model, size)}")
            if run.step == args.stop_at:
                return
    if accelerator.is_main_process and args.output:
        plain = accelerator.unwrap_model(model)
        task.finish(plain, args)
        export(plain, Path(args.output), task.processor(args.image_size))
        shutil.copy(run.log_path, Path(args.output) / "training_log.jsonl")
    accelerator.end_training()


def train_or_evaluate(args: argparse.Namespace, task: Task, auto_class: type) -> None:
    """Do what the arguments of `parser` ask for; `auto_class` loads the model of `--evaluate`."""
    if args.evaluate:
        model = auto_class.from_pretrained(args.evaluate, dtype=torch.float32)
        print_metrics(model, AutoImageProcessor.from_pretrained(args.evaluate), args, task)
    else:
        train(args, task)
