"""What the scripts that train the reference models share: arguments, rendered scenes as batches, the trained folder.

Batches are counted, not shuffled: step s always sees the same scenes, so that `--resume` continues exactly.
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoImageProcessor

from ..checks import UserError
from ..scenes import SceneDataset
from .loop import LOG, Loop

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
    counts = {
        "log-every": 50,
        "save-every": 250,
        "val-scenes": 64,
        "stop-at": None,
        "eval-scenes": 512,
        "eval-seed": 1,
    }
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


class SceneRun(Loop):
    """One run over rendered scenes, in stages of (side in pixels, batch, steps).

    Raises:
        SystemExit: there is no checkpoint to resume from, or one that would be written over.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, task: Task) -> None:
        self.args, self.task = args, task
        self.stages = [tuple(map(int, s.split(":"))) for s in args.stages.split(",")]
        super().__init__(accelerator, args, sum(steps for _, _, steps in self.stages), clip=1.0)
        model = task.build(args)
        if accelerator.device.type == "cpu":
            # With so few tokens, plain matrix products beat the fused kernel's backward pass on CPUs.
            model.set_attn_implementation("eager")
        self.prepare(model, *_optimizers(model, args, task))
        try:
            if args.resume:
                self.restore(self.stored())
            else:
                self.check_new()
        except UserError as error:
            raise SystemExit(str(error)) from error

    def batches(self, last: int) -> Iterator[dict[str, Tensor]]:
        """Batches of what is left of each stage; scenes are numbered through, none is seen twice."""
        done, first_step, first_scene = self.step, 0, 0
        for size, batch, steps in self.stages:
            skip, until = max(0, done - first_step), min(steps, last - first_step)
            stop = first_scene + steps * batch
            if skip < until:
                data = SceneDataset("train", stop, (size, size), self.args.seed, self.task.materials)
                numbers = range(first_scene + skip * batch, first_scene + until * batch)
                batches = BatchSampler(numbers, batch, drop_last=True)
                loader = DataLoader(data, batch_sampler=batches, num_workers=self.args.workers)
                yield from self.accelerator.prepare(loader)
            first_step, first_scene = first_step + steps, stop

    def loss(self, batch: dict[str, Tensor], part: int) -> Tensor:
        with self.accelerator.autocast():
            output = self.model(pixel_values=batch["image"].float() / 127.5 - 1)
        return self.task.loss(output, batch)

    def rate(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        """Linear warm-up, then cosine to zero."""
        warm = min(1.0, (step + 1) / max(1, self.args.warmup))
        return optimizer.defaults["lr"] * warm * 0.5 * (1 + math.cos(math.pi * step / self.total))

    def place(self) -> dict[str, int]:
        images = first = 0
        for size, batch, steps in self.stages:
            if self.step > first or not first:
                images, current = images + min(self.step - first, steps) * batch, size
            first += steps
        return {"images": images, "size": current}

    def evaluation_due(self) -> bool:
        return self.step % self.args.save_every == 0 or self.step == self.total

    def evaluate(self) -> str:
        """Validates, and writes the model as it is to the folder `snapshot`."""
        plain, size = self.accelerator.unwrap_model(self.model), self.place()["size"]
        values = self.task.evaluate(plain, "validation", self.args.seed, self.args.val_scenes, size)
        hours = {"wall_hours": round(self.seconds() / 3600, 3), "cpu_hours": round(self.cpu_seconds() / 3600, 3)}
        self.log(validation=values, **hours)
        if self.accelerator.is_main_process:
            export(plain, self.work / "snapshot", self.task.processor(self.args.image_size))
        return f"step {self.step}: {values}"


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
    run = SceneRun(args, accelerator, task)
    parameters = sum(p.numel() for p in run.plain.parameters())
    accelerator.print(f"{parameters / 1e6:.2f} M parameters, {run.total} steps")
    finished = run.go()
    if finished and accelerator.is_main_process and args.output:
        plain = accelerator.unwrap_model(run.model)
        task.finish(plain, args)
        export(plain, Path(args.output), task.processor(args.image_size))
        shutil.copy(run.work / LOG, Path(args.output) / LOG)
    accelerator.end_training()


def train_or_evaluate(args: argparse.Namespace, task: Task, auto_class: type) -> None:
    """Do what the arguments of `parser` ask for; `auto_class` loads the model of `--evaluate`."""
    if args.evaluate:
        model = auto_class.from_pretrained(args.evaluate, dtype=torch.float32)
        print_metrics(model, AutoImageProcessor.from_pretrained(args.evaluate), args, task)
    else:
        train(args, task)
