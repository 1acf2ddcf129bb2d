"""What the commands `bench` and `export` run on: a model by any of its names, and images of a size that it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration import TokenClusteringConfig, as_accel
from ..evaluation.datasets import open_photographs
from ..evaluation.models import input_size
from ..loading import load_checkpoint, load_config
from .architectures import ARCHITECTURES, build_architecture
from .rivals import as_images

# Their image encoders are what runs on images alone, and what is accelerated.
_VISION_TOWERS = {
    "clip": "CLIPVisionModel",
    "sam": "SamVisionModel",
    "sam_hq": "SamHQVisionModel",
    "siglip": "SiglipVisionModel",
}
_RANDOM = "the weights are random, so agreement says nothing; time, memory and GFLOPs do not depend on them"


@dataclass
class Subject:
    """A dense float32 model and what it is run on.

    Attributes:
        model: on the device.
        images: (B, 3, h, w) on the device.
        settings: the one stored with it or those of the paper; None where neither is known.
        notes: for the report.
    """

    model: PreTrainedModel
    images: Tensor
    settings: list[TokenClusteringConfig] | None
    notes: list[str] = field(default_factory=list)


def load_subject(
    name: str,
    size: str | None = None,
    device: str | None = None,
    photographs: Sequence[Path] | None = None,
    batch_size: int = 1,
) -> Subject:
    """A model by Hub id, folder, name of a reference model or of one of `ARCHITECTURES`.

    Args:
        name: of the model.
        size: such as `"384"` or `"480x640"`; None takes that of the architecture, else of the processor, else of the
            configuration.
        device: None is a GPU where there is one.
        photographs: files; None takes some of scikit-image. A batch repeats them as often as needed.
        batch_size: images.

    Raises:
        ValueError: nothing of that name, or a size, device or file that does not work.
    """
    target = parse_device(device)
    sides = parse_size(size)
    found = list(open_photographs(photographs or ()).values())
    processor, notes = None, []
    if name in ARCHITECTURES:
        architecture = ARCHITECTURES[name]
        model, settings, notes = build_architecture(name), list(map(as_accel, architecture.settings)), [_RANDOM]
        if sides not in (None, architecture.size):
            settings = None
        sides = sides or architecture.size
    else:
        tower = _VISION_TOWERS.get(load_config(name).model_type)
        if tower is not None:
            notes.append(f"{name}: its vision encoder alone")
        checkpoint = load_checkpoint(name, auto_class=tower, dtype="float32")
        model, processor = checkpoint.model, checkpoint.processor
        settings = None if checkpoint.accel is None else [as_accel(checkpoint.accel)]
        sides = sides or default_size(model.config, processor)
    images = as_images([found[i % len(found)] for i in range(batch_size)], sides, processor)
    return Subject(model.to(target).requires_grad_(False), images.to(target), settings, notes)


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
            return (side, side) if isinstance(side, int) else tuple(side)
    raise ValueError(f"a {config.model_type!r} model without image processor says no image size: give {option} 384")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Sides from `"480x640"` or `"384"`.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.strip())
    if match is None:
        raise ValueError(f"size {text!r} must be HEIGHTxWIDTH or one side in pixels, for example 480x640")
    height, width = match.groups()
    return int(height), int(width or height)


def parse_device(text: str | None) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: it is not.
    """
    try:
        device = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {text!r} cannot be used: {str(error).splitlines()[0]}; for example cpu") from error
    return device
