"""The rows of a benchmark: clusters, and other ways to spend as many FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel

from .. import TokenClusteringConfig, accelerate, accelerate_config
from ..configs import family_of
from ..evaluation.flops import gflops_of_shape
from ..evaluation.models import input_step, stored_accel
from ..evaluation.rivals import default_settings, group_name, setting_name
from ..evaluation.task import Variant
from ..merging import merge_in_layers

# Careful and bold, as the paper's settings on a ViT-L are; released, and what keeps most on the reference models.
DEFAULTS = SimpleNamespace(shares=((10 / 24, 0.7), (8 / 24, 0.5)), variations=({}, {"expansion": "delta"}))


@dataclass(frozen=True)
class Rival:
    """One row, in any mode.

    Attributes:
        name: for the table.
        kind: `"dense"`, `"clusters"`, `"grid pooling"`, `"lower resolution"` or `"token merging"`.
        group: rows of one group have similar GFLOPs.
        accel: setting of clusters or grid pooling.
        per_layer: tokens merged before each block.
        scale: of the input.
        step: what its sides are multiples of.
        gflops: of one image.
    """

    name: str
    kind: str
    group: int = 0
    accel: dict | None = None
    per_layer: int | None = None
    scale: float = 1.0
    step: int = 1
    gflops: float = 0.0

    def build(self, base: PreTrainedModel) -> PreTrainedModel:
        """Its model, with the tensors of the dense one."""
        if self.per_layer is not None:
            return merge_in_layers(base, self.per_layer)
        return base if self.accel is None else accelerate(base, self.accel)

    def variant(self, model: Any) -> Variant:
        return Variant(self.name, model, self.scale, self.step)


def rivals_of(
    model: PreTrainedModel,
    size: tuple[int, int],
    settings: Sequence[TokenClusteringConfig] | None = None,
    *,
    others: bool = True,
) -> tuple[list[Rival], list[str]]:
    """The rows for a dense model at an image size (height, width), and why rows are missing.

    Lower resolution and token merging are set so that their GFLOPs are nearest to those of the first setting of their
    group: the settings with the same layers and grid.

    Args:
        model: dense.
        size: of the images in pixels.
        settings: clustered rows; None takes a careful and a bold one, as released and with `"delta"`.
        others: whether grid pooling, lower resolution and token merging are rows too.

    Raises:
        ValueError: the model cannot be accelerated, or a setting does not fit.
    """
    if settings is None:
        settings = default_settings(model, size, DEFAULTS)
    dense = Rival("dense", "dense", gflops=gflops_of_shape(accelerate(model, None), size))
    rows, notes = [dense], []
    groups: dict[str, list[TokenClusteringConfig]] = {}
    for setting in settings:
        groups.setdefault(group_name(setting), []).append(setting)
    for number, (name, members) in enumerate(groups.items(), start=1):
        clustered = [_clustered(model, size, setting, number) for setting in members]
        rows += clustered
        if not others:
            continue
        target = clustered[0].gflops
        rows.append(_clustered(model, size, replace(members[0], iterations=0), number))
        for make in (_lower_resolution, _merging):
            try:
                rows.append(make(model, size, dense, target, number))
            except (ValueError, RuntimeError) as error:  # Models with a fixed input size raise either.
                notes.append(f"No {make.__name__.strip('_').replace('_', ' ')} beside {name}: {error}".rstrip("."))
    return rows, notes


def _clustered(model: PreTrainedModel, size: tuple[int, int], setting: TokenClusteringConfig, group: int) -> Rival:
    accelerated = accelerate(model, setting, size)
    # The model's family has filled in what the setting leaves open.
    accel = stored_accel(accelerated.config)
    resolved = TokenClusteringConfig.from_dict(accel)
    kind = "clusters" if setting.iterations else "grid pooling"
    plain = TokenClusteringConfig(cluster_after=0, cluster_grid=(1, 1)).iterations
    label = setting_name(resolved if setting.iterations else replace(resolved, iterations=plain))
    return Rival(f"{kind} {label}", kind, group, accel, gflops=gflops_of_shape(accelerated, size))


def _lower_resolution(model: PreTrainedModel, size: tuple[int, int], dense: Rival, target: float, group: int) -> Rival:
    step = input_step(model.config)
    most = min(size) // step
    native = accelerate(model, None)

    def rival(steps: int) -> Rival:
        return Rival("", "lower resolution", group, scale=steps / most, step=step)

    def cost(steps: int) -> float:
        return gflops_of_shape(native, rival(steps).variant(None).size(*size))

    steps = nearest(cost, 1, most, target)
    if steps == most:
        raise ValueError(f"{target:.2f} GFLOPs are nearest to those of the full resolution")
    found = rival(steps)
    height, width = found.variant(None).size(*size)
    return replace(found, name=f"lower resolution {height}x{width}", gflops=cost(steps))


def _merging(model: PreTrainedModel, size: tuple[int, int], dense: Rival, target: float, group: int) -> Rival:
    def cost(count: int) -> float:
        return gflops_of_shape(merge_in_layers(model, count), size) if count else dense.gflops

    host = accelerate_config(model.config, None).accel_host()
    height, width = family_of(host).accel_grid(host, size)
    cost(1)  # Says so where the model cannot.
    count = nearest(cost, height * width // 2, 0, target)
    if count == 0:
        raise ValueError(f"{target:.2f} GFLOPs are nearest to those without merging")
    return Rival(f"token merging {count} per layer", "token merging", group, per_layer=count, gflops=cost(count))


def nearest(cost: Callable[[int], float], cheapest: int, dearest: int, target: float) -> int:
    """The integer between two whose cost, which grows from the one to the other, is nearest to a target."""
    known: dict[int, float] = {}

    def cost_at(value: int) -> float:
        if value not in known:
            known[value] = cost(value)
        return known[value]

    low, high = cheapest, dearest
    while abs(high - low) > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_at(middle) < target else (low, middle)
    return min((low, high), key=lambda value: abs(cost_at(value) - target))


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
