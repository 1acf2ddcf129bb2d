"""Figures of prompted masks: those of the dense and of the accelerated model, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from torch import Tensor

from ..pictures import Panel, empty_grid, show_clusters
from ..segmentation.pictures import PALETTE


def _paint(image: np.ndarray, masks: Tensor) -> np.ndarray:
    """Image with masks (P, H, W) in the colour of their prompt, the large ones below."""
    painted = image / 255
    for i in masks.flatten(1).sum(1).argsort(descending=True).tolist():
        mask = masks[i].numpy()
        painted[mask] = 0.4 * painted[mask] + 0.6 * np.array(to_rgb(PALETTE[(4 + i) % len(PALETTE)]))
    return painted


def _show_differences(axis, panel: Panel) -> None:
    """Share of the masks that differ at a pixel, on the pale image."""
    axis.imshow(0.7 + 0.3 * panel.image.mean(-1, keepdims=True).repeat(3, -1) / 255)
    differ = (panel.dense ^ panel.accelerated).sum(0).numpy()
    marks = np.zeros((*differ.shape, 4))
    marks[differ > 0] = (*to_rgb("#d62828"), 1)
    marks[..., 3] = np.where(differ > 0, 0.35 + 0.65 * differ / max(differ.max(), 1), 0)
    axis.imshow(marks, interpolation="nearest")


def draw_masks(panels: Sequence[Panel], path: str | Path, *, heading: str = "") -> Path:
    """Image, masks of both models, where they differ (the redder, the more of them), and the clusters.

    Args:
        panels: Lines of the figure; instead of maps they have masks (P, H, W), prompt by prompt.
        path: PNG file to write.
        heading: Line over the figure.
    """
    figure, axes = empty_grid(panels, ["image", "dense", "accelerated", "disagreement", "clusters"], heading, foot=0.1)
    for line, panel in zip(axes, panels, strict=True):
        line[0].imshow(panel.image)
        for axis, masks in zip(line[1:], (panel.dense, panel.accelerated), strict=False):
            axis.imshow(_paint(panel.image, masks))
        _show_differences(line[3], panel)
        show_clusters(line[4], panel)
    figure.savefig(path)
    return Path(path)
