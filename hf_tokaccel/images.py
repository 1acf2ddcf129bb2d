"""Images on their way into a model: reading files, sizes, and photographs that come with scikit-image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .checks import UserError, as_pair, brief, first_line


class UnreadableError(UserError):
    """A file that cannot be read, which the user may have skipped."""


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a `UnreadableError` that names the file."""
    try:
        yield
    except Exception as error:  # Each of Pillow's decoders has errors of its own types.
        raise UnreadableError(f"{name} cannot be read ({first_line(error)})") from error


def read_image(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """Image file as uint8 (H, W, 3), see `as_rgb`.

    Args:
        path: of the file.
        upright: turns it as its EXIF orientation says; False where labels are of the pixels as they are stored.

    Raises:
        UnreadableError: It cannot be read.
    """
    with reading(path), Image.open(path) as image:
        return np.array(as_rgb(image, upright=upright))


def as_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Image of any mode as RGB of 8 bits; Pillow alone would cut off what is brighter than 255.

    Grey of 16 bits is from 0 to 65535, and floating point from 0 to 1, or to 255 where something is above 1.

    Args:
        image: as Pillow opens it.
        upright: see `read_image`.

    Raises:
        ValueError: Numbers of 32 bits of which nobody says what is white.
    """
    mode, kind = image.mode, image.format
    if upright:
        image = ImageOps.exif_transpose(image)
    if mode == "F" or mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), kind))
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, kind: str | None) -> np.ndarray:
    """Grey values as uint8 (H, W); `kind` is the format of the file that they are from."""
    low, high = values.min(), values.max()
    # Some versions of Pillow open these as 32 bits, of which the upper 16 are empty.
    if values.dtype.itemsize == 2 or (kind in ("PNG", "PPM") and low >= 0 and high < 2**16):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not (low >= 0 and high <= 255):  # also of NaN
        raise UserError(
            f"grey values of {values.dtype} from {low} to {high}: nobody says what is white; they must be from 0 to "
            "255, from 0 to 1 in floating point, or of 16 bits"
        )
    scale = 255 if values.dtype.kind == "f" and high <= 1 else 1
    return (values * scale).round().astype(np.uint8)


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")


def open_photographs(paths: Sequence[str | Path] = ()) -> dict[str, np.ndarray]:
    """Photographs by name, uint8 (H, W, 3): the given files, or those that scikit-image carries in its package.

    Raises:
        ValueError: A file that is missing or is no image, or scikit-image is not installed.
    """
    if not paths:
        try:
            import skimage.data
        except ImportError as error:
            raise UserError(
                "--images without paths shows photographs of scikit-image: pip install scikit-image, or give files"
            ) from error
        folder = Path(skimage.data.__file__).parent
        paths = [next(folder.glob(f"{name}.*"), folder / f"{name}.png") for name in PHOTOGRAPHS]
    missing = [str(path) for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(f"{no_image(missing[0])}; give image files, or no path for those of scikit-image")
    images = {}
    for path in map(Path, paths):
        if path.stem in images:
            raise UserError(f"two photographs are called {path.stem!r}, the last is {path}; rename one of them")
        images[path.stem] = read_image(path)
    return images


def no_image(path: str | Path) -> str:
    """What is wrong with a path where an image file should be."""
    if not Path(path).is_dir():
        return f"image {path} does not exist"
    files = sorted(entry.name for entry in Path(path).iterdir() if entry.is_file())
    return f"{path} is a folder, {f'with for example {files[0]}' if files else 'and there is no file in it'}"


def patch_size(config) -> int:
    """Side of a patch in pixels; DPT keeps it in its own config or in that of its backbone."""
    backbone = getattr(config, "backbone_config", None)
    size = getattr(backbone, "patch_size", None) or getattr(config, "patch_size", None) or 1
    return max(as_pair(size))


def input_step(config) -> int:
    """What the sides of a model's input must be multiples of: a patch, or as many as there are windows a side."""
    backbone = getattr(config, "backbone_config", None) or config
    return patch_size(config) * (getattr(backbone, "num_windows", None) or 1)


def input_size(processor, default: int = 384) -> tuple[int, int]:
    """Size that scenes are rendered at for an image processor: the one it makes anyway, (height, width) in pixels."""
    size = getattr(processor, "size", None) or {}
    height, width = (size.get(key) or size.get("shortest_edge") or default for key in ("height", "width"))
    return int(height), int(width)


def default_size(config: Any, processor: Any, option: str = "--size") -> tuple[int, int]:
    """Image size (height, width) of a processor, else of a configuration or of its backbone's.

    Raises:
        ValueError: neither says one; the message names the option that does.
    """
    processor = getattr(processor, "image_processor", processor)
    if {"height", "shortest_edge"} & {*(getattr(processor, "size", None) or {})}:
        return input_size(processor)
    for part in (config, *(getattr(config, name, None) for name in ("backbone_config", "vision_config"))):
        if isinstance(side := getattr(part, "image_size", None), (int, list, tuple)):
            return as_pair(side)
    raise UserError(f"a {config.model_type!r} model without image processor says no image size: give {option} 384")


def made_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of every image that a processor makes; None where they differ, or nothing says it."""
    processor = getattr(processor, "image_processor", processor)
    crops = getattr(processor, "do_center_crop", False)
    if not crops and getattr(processor, "keep_aspect_ratio", False):
        return None
    size = getattr(processor, "crop_size" if crops else "size", None) or {}
    sides = [size.get(name) for name in ("height", "width")]
    return tuple(sides) if all(sides) else None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Sides from `"480x640"` or `"384"`.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,8})(?:x([1-9]\d{0,8}))?", text.strip())
    if match is None:
        raise UserError(f"size {brief(text)} must be HEIGHTxWIDTH or one side in pixels, for example 480x640")
    height, width = match.groups()
    return int(height), int(width or height)


def as_images(photographs: Sequence[Any], size: tuple[int, int], processor: Any = None) -> torch.Tensor:
    """Photographs (H, W, 3) uint8 as model input (B, 3, h, w), with the processor's mean and deviation, or 0.5."""
    processor = getattr(processor, "image_processor", processor)
    mean, std = (torch.tensor(getattr(processor, name, None) or [0.5] * 3) for name in ("image_mean", "image_std"))
    images = []
    for photograph in photographs:
        pixels = torch.as_tensor(photograph).permute(2, 0, 1)[None].float() / 255
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        images.append((pixels - mean[:, None, None]) / std[:, None, None])
    return torch.cat(images)


@torch.no_grad()
def run_once(model: Any, images: torch.Tensor, **inputs: Any) -> Any:
    """The output for images (B, 3, h, w), asked for before anything is measured or written.

    Raises:
        ValueError: The model does not take images of this size, or needs other inputs too.
    """
    try:
        return model(pixel_values=images, **inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{type(model).__name__} does not run on images of {tuple(images.shape[-2:])} alone: "
            f"{' '.join(str(error).split())[:300]}; give a size that it takes, or a model that reads images "
            "only, such as the vision tower of a model with text"
        ) from error
