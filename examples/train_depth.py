"""Train and evaluate the reference depth model: a small native DPT on rendered scenes.

accelerate launch --cpu --num_processes 1 examples/train_depth.py --mixed-precision bf16 --output my-model
python examples/train_depth.py --evaluate hf_tokaccel/reference/dpt-scenes
python examples/train_depth.py --size vit-s --mixed-precision bf16 --workers 8 --output dpt-vit-s
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from hf_tokaccel.scenes import render_scenes
from hf_tokaccel.training.scenes import VIT_SIZES, Task, parse_sized, parser, place, train_or_evaluate

METRICS = ("abs_rel", "rmse", "delta1", "delta2", "delta3", "delta1_objects")


def build_model(args: argparse.Namespace) -> DPTForDepthEstimation:
    """Return an untrained DPT whose output has the size of its input and is depth in metres."""
    config = DPTConfig(
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.mlp,
        image_size=args.image_size,
        patch_size=args.patch_size,
        backbone_out_indices=[args.layers * (i + 1) // 4 - 1 for i in range(4)],
        # The native factors, for patches of 16; those of 8 would predict at twice the input size with them.
        reassemble_factors=[args.patch_size // 4, args.patch_size // 8, args.patch_size / 16, args.patch_size / 32],
        neck_hidden_sizes=[args.features * n // 2 for n in (2, 3, 4, 5)],
        fusion_hidden_size=args.features,
        initializer_range=0.05,
        depth_estimation_type="metric",  # no field of DPT's own; evaluation reads it
    )
    model = DPTForDepthEstimation(config)
    place(model.dpt.embeddings.position_embeddings, args.image_size // args.patch_size)
    with torch.no_grad():
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
            images = list(batch.pixels.cpu())
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


def image_processor(side: int) -> DPTImageProcessor:
    half = [0.5, 0.5, 0.5]
    size = {"height": side, "width": side}
    return DPTImageProcessor(size=size, keep_aspect_ratio=False, image_mean=half, image_std=half)


def main() -> None:
    own = {"patch-size": 8, "features": 32}
    arguments = parser(__doc__, "96:16:2100,128:16:400,192:8:1900", "outputs/train_depth", own)
    sizes = {name: values | {"features": values["width"] // 4} for name, values in VIT_SIZES.items()}
    args = parse_sized(arguments, sizes)
    task = Task(
        build=build_model,
        loss=lambda output, batch: depth_loss(output.predicted_depth, batch["depth"]),
        evaluate=evaluate,
        processor=image_processor,
    )
    train_or_evaluate(args, task, AutoModelForDepthEstimation)


if __name__ == "__main__":
    main()
