"""What the scripts that train semantic segmentation on rendered scenes share: loss, metrics, and their command."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from ..measure.metrics.segmentation import image_sums, metrics_from_counts, num_sums
from ..scenes import CLASS_NAMES, render_scenes
from .scenes import Task, parser, train_or_evaluate

MATERIALS = "typical"
LABELS = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}


@functools.cache
def class_weights(balance: float, device: torch.device) -> Tensor:
    """Return the weights of the classes, powers of their rareness; the mean over pixels is 1."""
    labels = render_scenes(range(256), (64, 64), "train", 0, materials=MATERIALS).labels
    share = labels.flatten().bincount(minlength=len(CLASS_NAMES)) / labels.numel()
    weights = share.clamp(min=1e-4) ** -balance
    return (weights / (weights * share).sum()).to(device)


def segmentation_loss(logits: Tensor, labels: Tensor, balance: float) -> Tensor:
    """Return weighted cross entropy plus Dice loss over the classes of the batch.

    Both make up for the sizes of the classes: mIoU counts a cup as much as the floor.
    """
    logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    log = logits.log_softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(log.dtype)
    chance, there = log.exp(), truth.sum(dim=(0, 2, 3))
    dice = 1 - (2 * (chance * truth).sum(dim=(0, 2, 3)) + 1) / (chance.sum(dim=(0, 2, 3)) + there + 1)
    return F.nll_loss(log, labels, weight=class_weights(balance, labels.device)) + dice[there > 0].mean()


@torch.no_grad()
def adjust_logits(bias: Tensor, args: argparse.Namespace) -> None:
    """Subtract from the bias of the logits what the class weights added to it: the log of the weights, or most of it.

    See logit adjustment (Menon et al., ICLR 2021, section 4.1); weights help rare classes to be learned, but then too
    many pixels are given to them.
    """
    bias -= args.adjustment * class_weights(args.balance, bias.device).log()


@torch.no_grad()
def evaluate(model: nn.Module, split: str, seed: int, count: int, size: int, processor=None) -> dict:
    """Return mIoU, mean and pixel accuracy, and the IoU of each class, all from the pixels of all scenes together."""
    model.eval()
    device, classes = next(model.parameters()).device, len(CLASS_NAMES)
    sums = torch.zeros(num_sums(classes), dtype=torch.float64)
    for start in range(0, count, 16):
        numbers = range(start, min(start + 16, count))
        batch = render_scenes(numbers, (size, size), split, seed, device, MATERIALS)
        pixels = batch.image * 2 - 1
        if processor is not None:
            images = list(batch.pixels.cpu())
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(device)
        logits = F.interpolate(model(pixel_values=pixels).logits.float(), (size, size), mode="bilinear")
        sums += sum(image_sums(*pair, classes) for pair in zip(logits.argmax(dim=1), batch.labels, strict=True))
    scores = metrics_from_counts(sums)
    of_class = zip(CLASS_NAMES, scores.pop("iou").tolist(), strict=True)
    per_class = {name: round(value, 3) for name, value in of_class if value == value}  # NaN: in none of the scenes
    return {name: round(value.item(), 4) for name, value in scores.items()} | {"iou": per_class}


def segmentation_parser(description: str, stages: str, work: str, sizes: dict[str, int]) -> argparse.ArgumentParser:
    """Return the arguments of `parser` and those of loss and logits."""
    result = parser(description, stages, work, sizes)
    result.add_argument("--balance", type=float, default=0.5, help="0 weighs classes by their pixels, 1 equally")
    result.add_argument(
        "--adjustment",
        type=float,
        default=0.6,
        help="share of the log weights that the trained logits give back",
    )
    return result


def run_segmentation(
    args: argparse.Namespace,
    build: Callable[[argparse.Namespace], nn.Module],
    processor: Callable[[int], Any],
    bias: Callable[[nn.Module], Tensor],
    **options: Any,
) -> None:
    """Train, or evaluate, as the arguments say.

    Args:
        args: Of `segmentation_parser`.
        build: Arguments to an untrained model.
        processor: Side in pixels to the image processor that is saved with the model.
        bias: Model to the bias of its logits (C,), which is adjusted after training.
        options: Further fields of `Task`.
    """
    task = Task(
        build=build,
        loss=lambda output, batch: segmentation_loss(output.logits, batch["labels"], args.balance),
        evaluate=evaluate,
        processor=processor,
        materials=MATERIALS,
        finish=lambda model, args: adjust_logits(bias(model), args),
        **options,
    )
    train_or_evaluate(args, task, AutoModelForSemanticSegmentation)
