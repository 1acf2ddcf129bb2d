"""What is measured and how it is run: tasks, and the variants of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import UserError
from ..measure.variant import Variant
from .pictures import Panel


def add_label(item: dict, sample: dict, what: str) -> dict:
    """An encoded item with the label (H, W) of its sample, where it has one.

    Args:
        item: With the `size` (H, W) of the image.
        sample: Read by the data set.
        what: The label in words, for the error.

    Raises:
        ValueError: Image and label differ in size.
    """
    label = sample.get("label")
    if label is None:
        return item
    if tuple(label.shape) != item["size"]:
        sizes = ["x".join(map(str, size)) for size in (item["size"], label.shape)]
        raise UserError(
            f"image {sample.get('name', '')} has {sizes[0]} pixels, but its {what} {sizes[1]}: they must be equal"
        )
    return item | {"label": label}


@dataclass
class Summary:
    """Quality of one variant on a data set.

    Attributes:
        metrics: What the table shows.
        intervals: 95 % confidence intervals over images of some metrics.
        classes: Value of each class, None where it does not occur.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: dict[str, float | None] = field(default_factory=dict)


class Task(ABC):
    """What the loop and the table must know about a dense-prediction task.

    Attributes:
        name: Such as `"depth-estimation"`; a key of `report.COLUMNS`.
        label: Key of the truth in samples and encoded items.
        no_label_hint: Advice where no label has a valid pixel.
        num_sums: Numbers that `score` gives for an image.
        shares: What is compared by default: shares of the layers before clustering and of the tokens' grid per side;
            with stages and windows those of the longest stage and of a window.
        variations: Fields of `TokenClusteringConfig`, each with every one of the shares.
    """

    name: str
    label: str
    no_label_hint: str
    num_sums: int
    shares: Sequence[tuple[float, float]]
    variations: Sequence[dict[str, Any]]

    @abstractmethod
    def encode(self, sample: dict) -> dict[str, Any]:
        """One sample as model input `pixel_values` (3, h, w) and whatever `decode` and `score` need.

        Raises:
            ValueError: A sample that cannot be used.
        """

    @abstractmethod
    def decode(self, outputs: Any, items: Sequence[dict]) -> list[Tensor]:
        """Predictions at the size of the labels, one per item, from what `run` gave for a batch."""

    @abstractmethod
    def score(self, prediction: Tensor, item: dict) -> Tensor:
        """Additive sums of one image, float64 (num_sums,); the last is 1, or 0 where the label has no valid pixel."""

    @abstractmethod
    def summarise(self, sums: Tensor, kept: Sequence[Mapping[int, Any]] = ()) -> list[Summary]:
        """Quality of each variant; the first is dense.

        Args:
            sums: Of all images, (variants, images, num_sums).
            kept: What `keep` gave for every variant, by the index of the image in the data set.
        """

    def keep(self, prediction: Any, item: dict) -> Any:
        """What a score needs of one image beside its sums, small and picklable; None where sums are enough."""
        return None

    @abstractmethod
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants on a sample."""

    @abstractmethod
    def draw_samples(self, panels: Sequence[Panel], path: Path, heading: str) -> None:
        """Writes a figure of images with truth as PNG."""

    @abstractmethod
    def draw_photographs(self, panels: Mapping[str, Panel], path: Path, heading: str) -> dict[str, str]:
        """Writes a figure of images without truth as PNG; says by name how far the two maps of each differ."""

    def run(self, variant: Variant, pixel_values: Tensor) -> Any:
        """The model's work on a batch (B, 3, h, w)."""
        return variant(pixel_values)

    def timed(self, variant: Variant, pixel_values: Tensor) -> Callable[[], Any]:
        """`run` for the clock: what belongs to reading an image, such as resizing it, is done before."""
        return partial(variant.model, **variant.arguments(pixel_values))

    def model_input(self, pixel_values: Tensor) -> Tensor:
        """What one forward pass sees of a batch (B, 3, h, w): all of it, or a window."""
        return pixel_values

    @torch.inference_mode()
    def predict(self, variant: Variant, sample: dict) -> Tensor:
        """Map of one image (H, W) by one variant, on the CPU."""
        item = self.encode(sample)
        (prediction,) = self.decode(self.run(variant, item["pixel_values"][None].to(variant.device)), [item])
        return prediction.cpu()
