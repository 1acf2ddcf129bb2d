"""What the commands `bench` and `export` run on: a model by any of its names, and images of a size that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..checkpoint import load_checkpoint, load_config
from ..checks import UserError
from ..images import as_images, default_size, open_photographs, parse_size
from ..settings.clustering import TokenClusteringConfig
from ..settings.methods import as_accel
from .architectures import ARCHITECTURES, build_architecture

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
        tower = _VISION_TOWERS.get(load_config(name, also=ARCHITECTURES).model_type)
        if tower is not None:
            notes.append(f"{name}: its vision encoder alone")
        checkpoint = load_checkpoint(name, auto_class=tower, dtype="float32")
        model, processor = checkpoint.model, checkpoint.processor
        settings = None if checkpoint.accel is None else [as_accel(checkpoint.accel)]
        sides = sides or default_size(model.config, processor)
    images = as_images([found[i % len(found)] for i in range(batch_size)], sides, processor)
    return Subject(model.to(target).requires_grad_(False), images.to(target), settings, notes)


def parse_device(text: str | None) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: it is not.
    """
    try:
        device = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {text!r} cannot be used: {str(error).splitlines()[0]}; for example cpu") from error
    return device
