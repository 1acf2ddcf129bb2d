"""Train and evaluate the reference depth model: a small native DPT on rendered scenes.

    accelerate launch --cpu --num_processes 1 examples/train_depth.py --mixed-precision bf16 --output my-model
    python examples/train_depth.py --evaluate hf_tokaccel/reference/dpt-scenes

Batches are counted, not shuffled: step s always sees the same scenes, so `--resume` continues exactly.
"""

import argparse
import json
import math
import os
import resource
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from hf_tokaccel.scenes import SceneDataset, render_scenes

METRICS = ("abs_rel", "rmse", "delta1", "delta2", "delta3", "delta1_objects")


def build_model(args: argparse.Namespace) -> DPTForDepthEstimation:
    """Return an untrained DPT whose output has the size of its input and is depth in metres."""
    config = DPTConfig(
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.mlp,
        image_size=args.image_size,
        patch_size=8,
        backbone_out_indices=[args.layers * (i + 1) // 4 - 1 for i in range(4)],
        # Patches of 8 with the native factors (4, 2, 1, 0.5) would predict at twice the input size.
        reassemble_factors=[2, 1, 0.5, 0.25],
        neck_hidden_sizes=[32, 48, 64, 80],
        fusion_hidden_size=32,
        initializer_range=0.05,
        depth_estimation_type="metric",  # no field of DPT's own; evaluation reads it
    )
    model = DPTForDepthEstimation(config)
    grid, quarter = args.image_size // 8, args.width // 4
    angle = torch.arange(grid)[:, None] / grid * math.pi * 2.0 ** torch.linspace(0, 5, quarter)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    table = torch.cat([wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)], dim=2).flatten(0, 1)
    with torch.no_grad():
        # Zero position embeddings learn slowly, and most of indoor depth is a matter of position.
        model.dpt.embeddings.position_embeddings[0, 1:, : table.shape[1]] = 0.3 * table
        # The head ends in a ReLU: start at a typical depth, so that no pixel is dead.
        model.head.head[4].bias.fill_(3.0)
    return model


def depth_loss(predicted: Tensor, depth: Tensor) -> Tensor:
    """Return L1 plus scale-invariant error plus gradient error at four scales, all of log depth (B, H, W)."""
    error = (predicted.float() + 1e-2).log() - (depth + 1e-2).log()
    loss = error.abs().mean() + (error.var(dim=(1, 2), correction=0) + 1e-6).sqrt().mean()
    for scale in (1, 2, 4, 8):
        coarse = error[:, ::scale, ::scale]
        loss = loss + 0.25 * (coarse.diff(dim=1).abs().mean() + coarse.diff(dim=2).abs().mean())
    return loss


@torch.no_grad()
def evaluate(model: nn.Module, split: str, seed: int, count: int, size: int, processor=None) -> dict[str, float]:
    """Return AbsRel, RMSE in metres and delta1 to delta3 over all pixels, and delta1 over pixels of objects."""
    model.eval()
    device, total = next(model.parameters()).device, 0.0
    for start in range(0, count, 16):
        batch = render_scenes(range(start, min(start + 16, count)), (size, size), split, seed, device)
        pixels = batch.image * 2 - 1
        if processor is not None:
            images = [(i * 255).round().to(torch.uint8).cpu() for i in batch.image]
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(device)
        predicted = model(pixel_values=pixels).predicted_depth.float()
        predicted = F.interpolate(predicted[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
        error, things = (predicted - batch.depth).abs(), batch.instances > 0
        ratio = torch.maximum(predicted / batch.depth, batch.depth / predicted.clamp(min=1e-3))
        rows = [error / batch.depth, error.square(), *(ratio < 1.25**k for k in (1, 2, 3)), things]
        total += torch.stack([r.double().mean() * len(r) / count for r in [*rows, things & (ratio < 1.25)]]).cpu()
    abs_rel, square, *deltas, things, hits = total.tolist()
    values = [abs_rel, square**0.5, *deltas, hits / max(things, 1e-9)]
    return dict(zip(METRICS, [round(v, 4) for v in values], strict=True))


def export(model: nn.Module, folder: Path, image_size: int) -> None:
    """Write model and processor; weights are stored in half precision, the config asks for single precision."""
    state = {k: v.detach().half().cpu() for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    size = {"height": image_size, "width": image_size}
    half = [0.5, 0.5, 0.5]
    DPTImageProcessor(size=size, keep_aspect_ratio=False, image_mean=half, image_std=half).save_pretrained(folder)


class Run:
    """One training run: its stages (size, batch, steps), its log, and checkpoints to resume from."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.stages = [tuple(map(int, s.split(":"))) for s in args.stages.split(",")]
        self.total = sum(steps for _, _, steps in self.stages)
        self.step, self.images, self.cpu_before = 0, 0, 0.0
        self.work = Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.log_path = self.work / "training_log.jsonl"

    def rate(self) -> float:
        """Return the learning rate of the current step: linear warm-up, then cosine to zero."""
        warm = min(1.0, (self.step + 1) / max(1, self.args.warmup))
        return self.args.lr * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def cpu_hours(self) -> float:
        used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return self.cpu_before + used / 3600

    def log(self, **values) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open("a") as file:
                file.write(json.dumps({"step": self.step, "images": self.images, **values}) + "\n")

    def save(self, model: nn.Module) -> None:
        """Write a checkpoint beside the last one and swap them, so that an interruption leaves one intact."""
        fresh, last = self.work / "checkpoint.new", self.work / "checkpoint"
        self.accelerator.save_state(str(fresh))
        if self.accelerator.is_main_process:
            state = {"step": self.step, "images": self.images, "cpu_hours": self.cpu_hours()}
            (fresh / "run.json").write_text(json.dumps(state))
            shutil.rmtree(last, ignore_errors=True)
            os.replace(fresh, last)
            export(self.accelerator.unwrap_model(model), self.work / "snapshot", self.args.image_size)

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
                data = SceneDataset("train", stop, (size, size), self.args.seed)
                batches = BatchSampler(range(first_scene + skip * batch, stop), batch, drop_last=True)
                yield size, DataLoader(data, batch_sampler=batches, num_workers=self.args.workers)
            first_step, first_scene = first_step + steps, stop


def train(args: argparse.Namespace) -> None:
    # Processes share each batch, so that their number changes neither the steps nor the scenes.
    share = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu, dataloader_config=share)
    set_seed(args.seed)
    run, model = Run(args, accelerator), build_model(args)
    if accelerator.device.type == "cpu":
        # With so few tokens, plain matrix products beat the fused kernel's backward pass on CPUs.
        model.set_attn_implementation("eager")
    accelerator.print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {run.total} steps")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.02)
    model, optimizer = accelerator.prepare(model, optimizer)
    if args.resume:
        run.load()
    elif accelerator.is_main_process:
        run.log_path.write_text("")
    bar = tqdm(total=run.total, initial=run.step, disable=not accelerator.is_main_process, mininterval=5)
    began, recent = time.time(), []
    for size, loader in run.loaders():
        for batch in accelerator.prepare(loader):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = run.rate()
            with accelerator.autocast():
                predicted = model(pixel_values=batch["image"].float() / 127.5 - 1).predicted_depth
            loss = depth_loss(predicted, batch["depth"])
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            run.step, run.images = run.step + 1, run.images + len(predicted) * accelerator.num_processes
            recent.append(loss.item())
            bar.update()
            if run.step % args.log_every == 0:
                mean = sum(recent) / len(recent)
                bar.set_postfix(loss=f"{mean:.3f}", size=size)
                run.log(size=size, loss=round(mean, 4), norm=round(float(norm), 3), lr=round(run.rate(), 7))
                recent = []
            if run.step % args.save_every == 0 or run.step == run.total:
                values = evaluate(accelerator.unwrap_model(model), "validation", args.seed, args.val_scenes, size)
                hours = {"wall_hours": round((time.time() - began) / 3600, 3), "cpu_hours": round(run.cpu_hours(), 3)}
                run.log(size=size, validation=values, **hours)
                bar.write(f"step {run.step}: {values}")
                run.save(model)
            if run.step == args.stop_at:
                return
    if accelerator.is_main_process and args.output:
        export(accelerator.unwrap_model(model), Path(args.output), args.image_size)
        shutil.copy(run.log_path, Path(args.output) / "training_log.jsonl")
    accelerator.end_training()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", default="96:16:2100,128:16:400,192:8:1900", help="size:batch:steps, ...; sizes in multiples of 32"
    )
    parser.add_argument("--output", help="folder for the trained model")
    parser.add_argument("--work", default="outputs/train_depth", help="folder for checkpoint, snapshot and log")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"))
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    sizes = {"image-size": 192, "width": 128, "layers": 12, "heads": 4, "mlp": 512, "warmup": 200, "workers": 0}
    counts = {"log-every": 50, "save-every": 250, "val-scenes": 64, "stop-at": -1, "eval-scenes": 512, "eval-seed": 1}
    for name, value in (sizes | counts).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--evaluate", metavar="DIR", help="print the metrics of a trained model on the test split")
    args = parser.parse_args()
    if args.evaluate:
        model = AutoModelForDepthEstimation.from_pretrained(args.evaluate, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(args.evaluate)
        values = evaluate(model, "test", args.eval_seed, args.eval_scenes, args.image_size, processor)
        print(json.dumps({"scenes": args.eval_scenes, "size": args.image_size, **values}))
    else:
        train(args)


if __name__ == "__main__":
    main()
