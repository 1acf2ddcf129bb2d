"""What the figures of all tasks share: lines of a figure, its grid of axes, cluster borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

_CELL, _GAP, _HEAD, _FOOT = 1.75, 0.06, 0.5, 0.5  # inches


@dataclass
class Panel:
    """One line of a figure.

    Attributes:
        image: Photograph or rendered image, uint8 (H, W, 3).
        dense: Map predicted by the dense model, (H, W).
        accelerated: Map predicted by the accelerated model, (H, W).
        labels: Cluster index of every token, (h, w), or of every pixel.
        truth: True map, (H, W); None for photographs.
    """

    image: np.ndarray
    dense: Tensor
    accelerated: Tensor
    labels: Tensor
    truth: Tensor | None = None


def cluster_borders(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Line segments between tokens of different clusters.

    Args:
        labels: Cluster index of every token, (h, w).
        size: Size of the image they are drawn on, (height, width).

    Returns:
        Segments (S, 2, 2) as pairs of (x, y) in the pixel coordinates of `imshow`.
    """
    step_y, step_x = size[0] / labels.shape[0], size[1] / labels.shape[1]
    row, column = np.nonzero(labels[:, 1:] != labels[:, :-1])
    x = (column + 1) * step_x
    upright = np.stack([np.stack([x, row * step_y], -1), np.stack([x, (row + 1) * step_y], -1)], 1)
    row, column = np.nonzero(labels[1:] != labels[:-1])
    y = (row + 1) * step_y
    flat = np.stack([np.stack([column * step_x, y], -1), np.stack([(column + 1) * step_x, y], -1)], 1)
    return np.concatenate([upright, flat]) - 0.5


def empty_grid(
    panels: Sequence[Panel], titles: Sequence[str], heading: str, foot: float = _FOOT
) -> tuple[Figure, np.ndarray]:
    """Empty axes (lines, columns) whose cells have the shape of the images, over `foot` inches for a legend."""
    ratios = [panel.image.shape[0] / panel.image.shape[1] for panel in panels]
    columns, mean = len(titles), sum(ratios) / len(ratios)
    cell = _CELL * min(max(mean**-0.5, 1), 1.5)  # Wide images, as those of KITTI, would be mere strips.
    # Inches: the cells with gaps between them, room for headings above and colour bars below.
    width = cell * columns + _GAP * (columns + 1)
    height = cell * sum(ratios) + _GAP * (len(panels) - 1) + _HEAD + foot
    figure = Figure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(figure)
    grid = {
        "height_ratios": ratios,
        "left": _GAP / width,
        "right": 1 - _GAP / width,
        "bottom": foot / height,
        "top": 1 - _HEAD / height,
        "wspace": _GAP / cell,
        "hspace": _GAP / (cell * mean),
    }
    axes = figure.subplots(len(panels), columns, squeeze=False, gridspec_kw=grid)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor="0.85")
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=4)
    figure.suptitle(heading, fontsize=9, x=_GAP / width, y=1 - 0.08 / height, ha="left", va="top")
    return figure, axes


def colour_bar(
    figure: Figure, axes: Sequence, colours: str, norm: Normalize, label: str, ticks=None, tick_labels=None
) -> None:
    """Horizontal colour bar under the given axes of the last line."""
    left, right = axes[0].get_position().x0, axes[-1].get_position().x1
    height = figure.get_size_inches()[1]
    place = figure.add_axes([left + 0.1 * (right - left), 0.36 / height, 0.8 * (right - left), 0.075 / height])
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=place, orientation="horizontal", ticks=ticks)
    if tick_labels is not None:
        bar.set_ticklabels(tick_labels)
    bar.outline.set_linewidth(0.4)
    place.tick_params(labelsize=6.5, length=2, width=0.4, pad=1.5)
    place.set_xlabel(label, fontsize=7, labelpad=1)


def show_clusters(axis, panel: Panel) -> None:
    axis.imshow(panel.image)
    segments = cluster_borders(panel.labels.numpy(), panel.image.shape[:2])
    # A dark line under a light one is seen on light and dark ground alike.
    axis.add_collection(LineCollection(segments, colors="black", linewidths=0.9, alpha=0.55, capstyle="projecting"))
    axis.add_collection(LineCollection(segments, colors="white", linewidths=0.4, capstyle="projecting"))
