"""Figures of panoptic segmentation: segments of the dense and the accelerated model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.collections import LineCollection
from torch import Tensor

from ...measure.metrics.panoptic import STEP, VOID, align, classes_of
from ..pictures import Panel, cluster_borders
from ..segmentation.pictures import draw_segmentation, show_classes

# Objects of a class have its colour, brighter or darker.
_SHADES = (1, 0.72, 1.22, 0.86, 1.4, 0.6)


def with_classes(panel: Panel) -> Panel:
    truth = None if panel.truth is None else classes_of(panel.truth)
    return replace(panel, dense=classes_of(panel.dense), accelerated=classes_of(panel.accelerated), truth=truth)


def paired(panel: Panel) -> Panel:
    """The panel with one code for segments that match: those of the truth, and of the dense model where there is none.

    So an object has one colour in all maps, as far as it was found.
    """
    dense = panel.dense if panel.truth is None else align(panel.dense, panel.truth)
    return replace(panel, dense=dense, accelerated=align(panel.accelerated, dense, last=STEP // 2))


def comparable(panel: Panel) -> Panel:
    """A `paired` panel whose predictions are equal where their segments match, and equal the truth where they do that.

    Two different segments that both match the same true one are equal, too: both are right.
    """
    if panel.truth is None:
        return panel
    alike = panel.accelerated == panel.dense
    own = align(panel.accelerated, panel.truth, last=STEP // 4)
    return replace(panel, accelerated=torch.where(alike, panel.dense, own))


def show_segments(axis, codes: Tensor, colours: dict, image: np.ndarray) -> None:
    """Draws a map of segments, (H, W), with borders."""
    present = {
        int(c): tuple(np.clip(np.array(colours[int(c) // STEP]) * _SHADES[(int(c) % STEP - 1) % len(_SHADES)], 0, 1))
        for c in codes.unique()
        if c != VOID
    }
    show_classes(axis, codes, present, image)
    borders = cluster_borders(codes.numpy(), tuple(codes.shape))
    axis.add_collection(LineCollection(borders, colors="black", linewidths=0.5, capstyle="projecting"))


def draw_panoptic(panels: Sequence[Panel], path: str | Path, class_names: Sequence[str], *, heading: str = "") -> Path:
    """Image, truth if it is known, both predictions, where they differ, and the clusters.

    Args:
        panels: Lines of the figure; maps hold segments (H, W), see `panoptic`.
        path: PNG file to write.
        class_names: Of all classes.
        heading: Line over the figure.
    """
    options = {"as_classes": with_classes, "comparable": comparable, "show": show_segments}
    return draw_segmentation([paired(panel) for panel in panels], path, class_names, heading=heading, **options)
