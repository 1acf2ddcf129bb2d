"""What tasks share whose models predict a class and a mask for each of their queries."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import OneFormerProcessor

from ..checks import UserError
from ..hosts.track import last_steps, observe_clusters
from ..measure.variant import Variant, give_inputs
from .pictures import Panel
from .task import Task, add_label


def give_task_input(model: nn.Module, folder: str, task: str = "panoptic") -> None:
    """Has OneFormer, which also reads what it shall do, do that; other models stay as they are.

    Args:
        model: What is made of it does the same.
        folder: Where its `OneFormerProcessor` is, or its Hub id.
        task: "panoptic", "instance" or "semantic" segmentation.

    Raises:
        ValueError: The folder lacks the tokenizer.
    """
    if "task_inputs" not in inspect.signature(model.forward).parameters:
        return
    try:
        processor = OneFormerProcessor.from_pretrained(folder)
        blank = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
        tokens = processor(images=blank, task_inputs=[task], return_tensors="pt")["task_inputs"]
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder!r} needs its OneFormerProcessor, which cannot be loaded: {error}") from error
    give_inputs(model, task_inputs=tokens)


def is_whole(item: dict) -> bool:
    """Whether an encoded image has no padding."""
    return tuple(item["pixel_values"].shape[-2:]) == item["valid"]


def at_input_size(maps: Tensor, item: dict, mode: str = "bilinear") -> Tensor:
    """Maps (B, Q, h, w) of a padded model input at its size, without the padding."""
    height, width = item["valid"]
    return F.interpolate(maps, tuple(item["pixel_values"].shape[-2:]), mode=mode)[..., :height, :width]


class QueryTask(Task):
    """Models that predict a class and a mask for each query.

    Attributes:
        processor: Image processor of the model.
        truth: What a label holds, in words.
    """

    truth: str
    # The paper's own setting for ADE20K (Swin-L: 10 of 18 blocks, windows of 8x8 of 12x12), then a bolder one.
    shares = ((10 / 18, 8 / 12), (5 / 18, 6 / 12))
    variations = ({"expansion": "soft"}, {"expansion": "nearest"}, {"expansion": "delta"})

    def encode(self, sample: dict) -> dict:
        """Model input and truth: `pixel_values` (3, h, w), `valid` part of it, `size` of the image, `label` (H, W)."""
        image = sample["image"]
        encoded = self.processor(images=image, return_tensors="pt", input_data_format="channels_last")
        item = {"pixel_values": encoded["pixel_values"][0], "size": tuple(image.shape[:2])}
        mask = encoded.get("pixel_mask")
        item["valid"] = tuple(item["pixel_values"].shape[-2:])
        if mask is not None:
            item["valid"] = int(mask[0].any(1).sum()), int(mask[0].any(0).sum())
        return add_label(item, sample, self.truth)

    def run(self, variant: Variant, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, classes + 1) and mask logits (B, Q, h, w) of Q queries for images (B, 3, H, W)."""
        output = variant(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits

    @torch.inference_mode()
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants on a sample."""
        maps = [self.predict(variant, sample) for variant in (dense, accelerated)]
        item = self.encode(sample)
        with observe_clusters() as seen:
            self.run(accelerated.with_eager(), item["pixel_values"][None].to(accelerated.device))
        labels = last_steps(seen)[0].image_labels()[:1].cpu()
        if not is_whole(item):
            labels = at_input_size(labels[None].double(), item, "nearest")[0].long()
        return Panel(sample["image"], *maps, labels[0], sample.get("label"))
