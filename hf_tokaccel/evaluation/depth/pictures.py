"""Figures of depth: predicted maps of the dense and the accelerated model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize

from ..pictures import Panel, colour_bar, empty_grid, show_clusters

DEPTH_COLOURS, ERROR_COLOURS = "Spectral", "inferno"


def thicken(values: np.ma.MaskedArray, radius: int = 2) -> np.ma.MaskedArray:
    """Map (H, W) whose unknown pixels take the largest known value nearby: single lidar points would not be seen."""
    known = ~np.ma.getmaskarray(values)
    if known.mean() > 0.5:
        return values
    side = 2 * radius + 1
    padded = np.pad(np.where(known, values.filled(0), -np.inf), radius, constant_values=-np.inf)
    largest = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).max((2, 3))
    return np.ma.masked_invalid(np.where(known, values.filled(0), largest))


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
    figure, axes = empty_grid(panels, titles, heading)
    truths = [np.ma.masked_equal(panel.truth.numpy(), 0) for panel in panels]
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
        show_clusters(line[6], panel)
    colour_bar(figure, axes[-1, 1:4], DEPTH_COLOURS, depth_norm, "depth [m]")
    colour_bar(figure, axes[-1, 4:6], ERROR_COLOURS, error_norm, "|predicted - true| / true")
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
    figure, axes = empty_grid(panels, titles, heading)
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
        show_clusters(line[4], panel)
    ends = ["far", "near"] if inverse else ["near", "far"]
    label = ("inverse depth" if inverse else "depth") + ", scaled per image"
    colour_bar(figure, axes[-1, 1:3], colours, Normalize(0, 1), label, ticks=[0, 1], tick_labels=ends)
    label = "|accelerated - dense| / " + ("range of dense" if inverse else "dense")
    colour_bar(figure, axes[-1, 3:4], ERROR_COLOURS, difference_norm, label)
    figure.savefig(path)
    return Path(path)
