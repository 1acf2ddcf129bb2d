"""Figures of objects: masks or boxes of the dense and the accelerated model side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.ops import box_iou

from ..pictures import Panel, empty_grid, show_clusters
from ..segmentation.pictures import PALETTE

MAX_NAMED = 12  # objects of an image whose names are written on it


@dataclass(frozen=True)
class Instances:
    """Objects in an image.

    Attributes:
        categories: Category ids (N,).
        scores: In [0, 1], (N,).
        boxes: x1, y1, x2, y2 in pixels, (N, 4).
        masks: Bool (N, H, W), or None.
    """

    categories: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor | None = None

    def take(self, which: Tensor) -> Instances:
        masks = None if self.masks is None else self.masks[which]
        return Instances(self.categories[which], self.scores[which], self.boxes[which], masks)

    def overlaps(self, other: Instances) -> Tensor:
        """IoU (N, M) of masks, or of boxes where there are none."""
        if self.masks is None:
            return box_iou(self.boxes.float(), other.boxes.float())
        one, two = (instances.masks.flatten(1).float() for instances in (self, other))
        both = one @ two.T
        return both / (one.sum(1)[:, None] + two.sum(1) - both).clamp(min=1)


def matches(dense: Instances, accelerated: Instances) -> list[tuple[int, int]]:
    """Pairs of one category whose IoU is at least one half: the best first, each object in one pair at most."""
    iou = dense.overlaps(accelerated)
    iou = iou * (dense.categories[:, None] == accelerated.categories)
    pairs, iou = [], iou.clone()
    while iou.numel() and iou.max() >= 0.5:
        row, column = divmod(int(iou.argmax()), iou.shape[1])
        pairs.append((row, column))
        iou[row], iou[:, column] = 0, 0
    return pairs


def count_matches(dense: Instances, accelerated: Instances) -> tuple[int, int, int]:
    """Objects that both found, that the dense model found, and that the accelerated one found."""
    return len(matches(dense, accelerated)), len(dense.scores), len(accelerated.scores)


def _colours(shown: Sequence[Instances]) -> list[list[tuple[float, float, float]]]:
    """Colours of the objects: those that match one of the first list have its colour, so that differences show."""
    first, *others = shown
    colours = [[to_rgb(PALETTE[(4 + i) % len(PALETTE)]) for i in range(len(first.scores))]]
    for instances in others:
        own = [to_rgb("#ffffff")] * len(instances.scores)
        for row, column in matches(first, instances):
            own[column] = colours[0][row]
        colours.append(own)
    return colours


def _show(axis, image: np.ndarray, instances: Instances, colours: Sequence, names: Mapping[int, str]) -> None:
    """Image with masks, or boxes, of objects, the large ones below."""
    painted = 0.35 * image.mean(-1, keepdims=True).repeat(3, -1) / 255 + 0.65 * image / 255
    areas = (instances.boxes[:, 2:] - instances.boxes[:, :2]).prod(1)
    order = torch.argsort(areas, descending=True).tolist()
    if instances.masks is not None:
        for i in order:
            mask = instances.masks[i].numpy()
            painted[mask] = 0.35 * painted[mask] + 0.65 * np.array(colours[i])
    axis.imshow(painted)
    for i in order:
        x1, y1, x2, y2 = instances.boxes[i].tolist()
        if instances.masks is None:
            place = {"xy": (x1 - 0.5, y1 - 0.5), "width": x2 - x1, "height": y2 - y1}
            axis.add_patch(Rectangle(**place, fill=False, edgecolor=colours[i], linewidth=1))
    for i in order[:MAX_NAMED]:
        x1, y1, x2, y2 = instances.boxes[i].tolist()
        style = {"fontsize": 4, "ha": "center", "va": "center", "color": "black", "clip_on": True}
        back = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.4}
        axis.text((x1 + x2) / 2, (y1 + y2) / 2, names[int(instances.categories[i])], bbox=back, **style)
    axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def draw_instances(
    panels: Sequence[Panel], path: str | Path, categories: Mapping[int, str], *, heading: str = ""
) -> Path:
    """Image, truth if it is known, objects of both models, and the clusters.

    An object has the colour of the one that it matches in the first list, and is white where there is none.

    Args:
        panels: Lines of the figure; instead of maps they have `Instances`.
        path: PNG file to write.
        categories: Names by category id.
        heading: Line over the figure.
    """
    known = panels[0].truth is not None
    titles = ["image", *(["truth"] if known else []), "dense", "accelerated", "clusters"]
    said = f"white: no {'true' if known else 'dense'} object of that class overlaps by half"
    figure, axes = empty_grid(panels, titles, heading, foot=0.25)
    for line, panel in zip(axes, panels, strict=True):
        line[0].imshow(panel.image)
        shown = [panel.truth] * known + [panel.dense, panel.accelerated]
        for axis, instances, colours in zip(line[1:], shown, _colours(shown), strict=False):
            _show(axis, panel.image, instances, colours, categories)
        show_clusters(line[-1], panel)
    figure.text(0.01, 0.08 / figure.get_size_inches()[1], said, fontsize=7)
    figure.savefig(path)
    return Path(path)
