"""Figures: predicted maps of the dense and the accelerated model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

DEPTH_COLOURS, ERROR_COLOURS = "Spectral", "inferno"
_CELL, _GAP, _HEAD, _FOOT = 1.75, 0.06, 0.5, 0.5  # inches


@dataclass
class Panel:
    """One line of a figure.

    Attributes:
        image: Photograph or rendered image, uint8 (H, W, 3).
        dense: Map predicted by the dense model, (H, W).
        accelerated: Map predicted by the accelerated model, (H, W).
        labels: Cluster index of every token, (h, w).
        depth: True depth in metres, (H, W), zero where unknown; None for photographs.
    """

    image: np.ndarray
    dense: Tensor
    accelerated: Tensor
    labels: Tensor
    depth: Tensor | None = None


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


def thicken(values: np.ma.MaskedArray, radius: int = 2) -> np.ma.MaskedArray:
    """Map (H, W) whose unknown pixels take the largest known value nearby: single lidar points would not be seen."""
    known = ~np.ma.getmaskarray(values)
    if known.mean() > 0.5:
        return values
    side = 2 * radius + 1
    padded = np.pad(np.where(known, values.filled(0), -np.inf), radius, constant_values=-np.inf)
    largest = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).max((2, 3))
    return np.ma.masked_invalid(np.where(known, values.filled(0), largest))


def _grid(panels: Sequence[Panel], titles: Sequence[str], heading: str) -> tuple[Figure, np.ndarray]:
    """Empty axes (lines, columns) whose cells have the shape of the images."""
    ratios = [panel.image.shape[0] / panel.image.shape[1] for panel in panels]
    columns, mean = len(titles), sum(ratios) / len(ratios)
    cell = _CELL * min(max(mean**-0.5, 1), 1.5)  # Wide images, as those of KITTI, would be mere strips.
    # Inches: the cells with gaps between them, room for headings above and colour bars below.
    width = cell * columns + _GAP * (columns + 1)
    height = cell * sum(ratios) + _GAP * (len(panels) - 1) + _HEAD + _FOOT
    figure = Figure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(figure)
    grid = {
        "height_ratios": ratios,
        "left": _GAP / width,
        "right": 1 - _GAP / width,
        "bottom": _FOOT / height,
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


def _colour_bar(
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


def _show_clusters(axis, panel: Panel) -> None:
    axis.imshow(panel.image)
    segments = cluster_borders(panel.labels.numpy(), panel.image.shape[:2])
    # A dark line under a light one is seen on light and dark ground alike.
    axis.add_collection(LineCollection(segments, colors="black", linewidths=0.9, alpha=0.55, capstyle="projecting"))
    axis.add_collection(LineCollection(segments, colors="white", linewidths=0.4, capstyle="projecting"))


def _percentile(maps: Sequence[np.ndarray], q: float) -> float:
    return float(np.percentile(np.concatenate([m.ravel() for m in maps]), q))


def draw_scenes(panels: Sequence[Panel], path: str | Path, *, heading: str = "", name: str = "accelerated") -> Path:
    """Image, true depth, both predictions, both errors and the clusters of some labelled images.

    Depth columns share one colour scale, error columns another.

    Args:
        panels: Lines of the figure, with true depth in metres.
        path: PNG file to write.
        heading: Line over the figure.
        name: Title of the accelerated column.
    """
    titles = ["image", "true depth", "dense", name, "error of dense", f"error of {name}", "clusters"]
    figure, axes = _grid(panels, titles, heading)
    truths = [np.ma.masked_equal(panel.depth.numpy(), 0) for panel in panels]
    predictions = [(panel.dense.numpy(), panel.accelerated.numpy()) for panel in panels]
    errors = [tuple(np.abs(p - truth) / truth for p in pair) for pair, truth in zip(predictions, truths, strict=True)]
    known = [truth.compressed() for truth in truths]
    depth_norm = Normalize(_percentile(known, 1), _percentile(known, 99))
    error_norm = Normalize(0, max(_percentile([e.compressed() for pair in errors for e in pair], 98), 1e-6))
    for line, panel, truth, pair, error in zip(axes, panels, truths, predictions, errors, strict=True):
        line[0].imshow(panel.image)
        for axis, values in zip(line[1:4], (thicken(truth), *pair), strict=True):
            axis.imshow(values, cmap=DEPTH_COLOURS, norm=depth_norm)
        for axis, values in zip(line[4:6], error, strict=True):
            axis.imshow(thicken(values), cmap=ERROR_COLOURS, norm=error_norm)
        _show_clusters(line[6], panel)
    _colour_bar(figure, axes[-1, 1:4], DEPTH_COLOURS, depth_norm, "depth [m]")
    _colour_bar(figure, axes[-1, 4:6], ERROR_COLOURS, error_norm, "|predicted - true| / true")
    figure.savefig(path)
    return Path(path)


def relative_difference(dense: np.ndarray, accelerated: np.ndarray, inverse: bool) -> np.ndarray:
    """Difference of two maps (H, W) relative to the dense one, or to its range where depth has no unit."""
    difference = np.abs(accelerated - dense)
    if inverse:
        low, high = np.percentile(dense, (2, 98))
        return difference / max(high - low, 1e-12)
    return difference / np.maximum(np.abs(dense), 1e-6)


def draw_photographs(
    panels: Sequence[Panel], path: str | Path, *, heading: str = "", name: str = "accelerated", inverse: bool = False
) -> Path:
    """Image, both predictions, their relative difference and the clusters of unlabelled photographs.

    Each line has its own depth scale, shared by its two maps; the differences share one scale.

    Args:
        panels: Lines of the figure.
        path: PNG file to write.
        heading: Line over the figure.
        name: Title of the accelerated column.
        inverse: The maps are inverse depth.
    """
    titles = ["image", "dense", name, "relative difference", "clusters"]
    figure, axes = _grid(panels, titles, heading)
    pairs = [(panel.dense.numpy(), panel.accelerated.numpy()) for panel in panels]
    differences = [relative_difference(*pair, inverse) for pair in pairs]
    difference_norm = Normalize(0, max(_percentile(differences, 98), 1e-6))
    # Near is warm in both kinds of map.
    colours = f"{DEPTH_COLOURS}_r" if inverse else DEPTH_COLOURS
    for line, panel, pair, difference in zip(axes, panels, pairs, differences, strict=True):
        norm = Normalize(*np.percentile(pair[0], (1, 99)))
        line[0].imshow(panel.image)
        for axis, values in zip(line[1:3], pair, strict=True):
            axis.imshow(values, cmap=colours, norm=norm)
        line[3].imshow(difference, cmap=ERROR_COLOURS, norm=difference_norm)
        _show_clusters(line[4], panel)
    ends = ["far", "near"] if inverse else ["near", "far"]
    label = ("inverse depth" if inverse else "depth") + ", scaled per image"
    _colour_bar(figure, axes[-1, 1:3], colours, Normalize(0, 1), label, ticks=[0, 1], tick_labels=ends)
    label = "|accelerated - dense| / " + ("range of dense" if inverse else "dense")
    _colour_bar(figure, axes[-1, 3:4], ERROR_COLOURS, difference_norm, label)
    figure.savefig(path)
    return Path(path)
