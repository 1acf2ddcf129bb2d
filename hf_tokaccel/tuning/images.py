"""What a search runs on: unlabelled images in any form, as batches that the model reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..checks import UserError
from ..images import as_rgb

_FORMS = (
    "tensors (3, height, width) or (B, 3, height, width) as the model reads them, dicts with pixel_values, or with a "
    "processor PIL images or arrays (height, width, 3)"
)
POINTS = 4  # of a side of the grid of prompts


def gather_images(images: Any, processor: Any = None, limit: int | None = None, seed: int = 0) -> Tensor:
    """Images of one size (n, 3, height, width), float32.

    Args:
        images: see `tune`.
        processor: image processor, or one that has one, for PIL images and arrays.
        limit: most images; if there are more, these are drawn.
        seed: of that draw.

    Raises:
        ValueError: no images, a form that is not known, or sizes that differ.
    """
    if isinstance(images, (str, bytes, Mapping)) or not isinstance(images, (Iterable, Tensor)):
        raise UserError(f"images of type {type(images).__name__} are not valid: give a sequence or loader of {_FORMS}")
    processor = getattr(processor, "image_processor", processor)
    found = [part for image in images for part in _as_tensors(image, processor)]
    if not found:
        raise UserError("images is empty: give at least one, better 16 or more, of what the model will be used on.")
    sizes = sorted({tuple(image.shape[-2:]) for image in found})
    if len(sizes) > 1:
        raise UserError(
            f"images of sizes {sizes[0]} and {sizes[-1]} are not valid: a setting is tuned for one size, to which all "
            f"must be resized before, for example {sizes[-1]}."
        )
    if limit is not None and len(found) > limit:
        drawn = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:limit]
        found = [found[index] for index in sorted(drawn.tolist())]
    return torch.stack(found)


def _as_tensors(image: Any, processor: Any) -> list[Tensor]:
    if isinstance(image, Mapping):
        if "pixel_values" not in image:
            raise UserError(f"a batch with {sorted(image)} is not valid: it must hold pixel_values.")
        image = image["pixel_values"]
    elif isinstance(image, (list, tuple)) and image and isinstance(image[0], Tensor):
        image = image[0]  # (images, labels) of a data loader
    if isinstance(image, Tensor) and image.is_floating_point() and image.ndim in (3, 4) and image.shape[-3] == 3:
        return list(image.float().reshape(-1, *image.shape[-3:]))
    if isinstance(image, (Image.Image, np.ndarray)):
        if processor is None:
            raise UserError(
                f"an image of type {type(image).__name__} needs a processor: give tune(..., processor="
                "AutoImageProcessor.from_pretrained(...)), or tensors as the model reads them."
            )
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            raise UserError(
                f"an array of {image.dtype} is not valid: processors take values for 0 to 255, so give uint8, or "
                "tensors as the model reads them."
            )
        image = as_rgb(image) if isinstance(image, Image.Image) else image
        return list(torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"]).float())
    shape = f" of shape {tuple(image.shape)} and {image.dtype}" if isinstance(image, Tensor) else ""
    raise UserError(f"an image of type {type(image).__name__}{shape} is not valid: give {_FORMS}.")


def other_inputs(model: PreTrainedModel, images: Tensor) -> dict[str, Any]:
    """What a model is called with beside images: for SAM a grid of points, one mask each; nothing for most."""
    if "input_points" not in inspect.signature(model.forward).parameters:
        return {}
    height, width = images.shape[-2:]
    steps = (torch.arange(POINTS) + 0.5) / POINTS
    rows, columns = torch.meshgrid(steps * height, steps * width, indexing="ij")
    points = torch.stack((columns, rows), dim=-1).view(1, POINTS**2, 1, 2)
    return {
        "input_points": points.expand(len(images), -1, -1, -1).to(images.device, images.dtype),
        "multimask_output": False,
    }
