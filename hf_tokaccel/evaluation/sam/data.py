"""Images and prompts for SAM: photographs or a folder, a grid of points or a file of points and boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...checks import UserError, did_you_mean
from ...images import open_photographs, read_image
from ...results.files import read_json
from ..datasets import MappedSamples, check_limit
from .options import EXAMPLE, SPECIFICATIONS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageDataset:
    """Images without truth.

    Attributes:
        name: For the report.
        samples: Items with `name` and `image`, uint8 (H, W, 3).
        names: Of all images.
    """

    name: str
    samples: Sequence[dict]
    names: tuple[str, ...]


def open_images(specification: str = "photographs", limit: int | None = None) -> ImageDataset:
    """The photographs of scikit-image, or those of a folder.

    Raises:
        ValueError: No such folder, no image in it, or scikit-image is not installed.
    """
    check_limit(limit)
    if specification == "photographs":
        images = [{"name": name, "image": image} for name, image in open_photographs().items()][:limit]
        return ImageDataset("photographs of scikit-image", images, tuple(item["name"] for item in images))
    folder = Path(specification)
    if not folder.is_dir():
        near = did_you_mean(specification, ["photographs"])
        raise UserError(f"dataset {specification!r} is no folder{near}; use {SPECIFICATIONS}")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES][:limit]
    if not paths:
        raise UserError(f"dataset folder {specification!r} has no images ({', '.join(SUFFIXES)})")
    samples = MappedSamples(paths, lambda path: {"name": path.name, "image": read_image(path)})
    return ImageDataset(str(folder), samples, tuple(path.name for path in paths))


@dataclass(frozen=True)
class Prompts:
    """What masks are asked for in one image: of each point one, and of each box one.

    Attributes:
        points: x and y in pixels, float32 (P, 2).
        boxes: x1, y1, x2, y2 in pixels, float32 (B, 4).
    """

    points: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.points) + len(self.boxes)

    def check(self, name: str, size: tuple[int, int]) -> None:
        """Raises ValueError where one does not lie on an image (height, width) of that name."""
        height, width = size
        for what, places in (("point", self.points), ("box", self.boxes)):
            for place in places.tolist():
                corners = np.reshape(place, (-1, 2))
                ordered = what == "point" or (place[0] < place[2] and place[1] < place[3])
                if not ordered or not ((corners >= 0) & (corners <= (width, height))).all():  # also NaN
                    raise UserError(
                        f"{what} {place} of image {name} must lie on its {width}x{height} pixels (width x height), "
                        f"for example {[width // 4, height // 4, width // 2, height // 2][: len(place)]}"
                    )


def grid_prompts(size: tuple[int, int], side: int) -> Prompts:
    """A grid of side x side points in the middles of equal cells of an image (height, width)."""
    middles = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middles * size[0], middles * size[1], indexing="ij")
    return Prompts(torch.stack([x, y], -1).reshape(-1, 2), torch.zeros(0, 4))


def read_prompts(path: str | Path, names: Sequence[str]) -> dict[str, Prompts]:
    """Prompts by image name from a JSON file, for all of the names.

    Raises:
        ValueError: It cannot be read, has prompts of other images or of other forms, or lacks those of an image.
    """
    content = read_json(path, "prompt file", f"; expected {EXAMPLE}")
    if not isinstance(content, dict):
        raise UserError(f"prompt file {path} must be an object with an entry per image, such as {EXAMPLE}")
    unknown, missing = sorted(set(content) - set(names)), [name for name in names if name not in content]
    if unknown or missing:
        wrong = f"has prompts of {unknown[0]!r}, which is no image" if unknown else f"lacks prompts of {missing[0]!r}"
        raise UserError(f"prompt file {path} {wrong}; the images are {', '.join(names[:5])}; expected {EXAMPLE}")
    return {name: _prompts(entry, f"{name!r} in {path}") for name, entry in content.items()}


def _prompts(entry: Mapping, where: str) -> Prompts:
    known = {"points": 2, "boxes": 4}
    if not isinstance(entry, dict) or not entry or not set(entry) <= set(known):
        raise UserError(f"the prompts of {where} must be points, boxes or both; expected {EXAMPLE}")
    tensors = {}
    for name, length in known.items():
        try:
            tensors[name] = torch.tensor(entry.get(name, []), dtype=torch.float32).reshape(-1, length)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UserError(f"{name} of {where} must be lists of {length} numbers; expected {EXAMPLE}") from error
    prompts = Prompts(**tensors)
    if not len(prompts):
        raise UserError(f"{where} has no prompt; expected {EXAMPLE}")
    return prompts
