"""One way to run a model: the model object and the input resolution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OTHER_INPUTS = "evaluation_inputs"


@dataclass(frozen=True)
class Variant:
    """One way to run a model: the model object and the input resolution.

    Attributes:
        name: Row name.
        model: Dense or accelerated model.
        scale: Input side relative to the image processor's output.
        multiple: The scaled side is rounded to this, normally the patch size.
    """

    name: str
    model: nn.Module
    scale: float = 1.0
    multiple: int = 1

    @property
    def eager(self) -> nn.Module:
        """The model without the wrapper of `torch.compile`, which hides its work from counters and observers."""
        return getattr(self.model, "_orig_mod", self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def with_eager(self) -> Variant:
        return replace(self, model=self.eager)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Input size at which this variant runs an image of (height, width)."""
        if self.scale == 1:
            return height, width
        return tuple(max(round(s * self.scale / self.multiple), 1) * self.multiple for s in (height, width))

    def inputs(self, pixel_values: Tensor) -> Tensor:
        """Model input (B, 3, h', w') from the image processor's (B, 3, h, w), in the model's dtype."""
        height, width = pixel_values.shape[-2:]
        size = self.size(height, width)
        if size != (height, width):
            pixel_values = F.interpolate(pixel_values, size, mode="bicubic", antialias=True)
        return pixel_values.to(next(self.model.parameters()).dtype)

    def arguments(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """What the model is called with: `inputs`, and what `give_inputs` added, once for each image."""
        images = self.inputs(pixel_values)
        others = getattr(self.eager, _OTHER_INPUTS, {}).items()
        return {"pixel_values": images} | {name: x.to(images.device).expand(len(images), -1) for name, x in others}

    def __call__(self, pixel_values: Tensor):
        return self.model(**self.arguments(pixel_values))


def give_inputs(model: nn.Module, **others: Tensor) -> None:
    """Has `Variant` call a model, and those that are made of it, with more than images: tensors (1, N) by name.

    An attribute, since accelerated models take those over; hooks they do not.
    """
    setattr(model, _OTHER_INPUTS, others)
