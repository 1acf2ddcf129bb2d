"""Figures of one image through several settings: clusters, their mean colours, output, and where it differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..measure.metrics.panoptic import image_sums, metrics_from_sums
from .depth import pictures as depth_pictures
from .panoptic import pictures as panoptic_pictures
from .pictures import Panel, colour_bar, show_clusters
from .segmentation import pictures as segmentation_pictures
from .showing import View, mean_colours
from .task import Task

_COLUMNS = 4
_AREA, _GAP, _HEAD, _NAMES, _LINE = 5.0, 0.08, 0.36, 0.22, 0.26  # inches; square inches of a cell
_SMALL, _NORMAL = 8, 9


class _Depth:
    """How depth is drawn: one scale for all maps, another for all differences."""

    foot = 0.55

    @staticmethod
    def prepare(panel: Panel) -> Panel:
        return panel

    def __init__(self, task: Task, panels: Sequence[Panel]):
        self.inverse, self.panels = task.protocol.inverse, panels
        dense, truth = panels[0].dense.numpy(), panels[0].truth
        known = dense if truth is None else truth.numpy()[truth.numpy() > 0]
        self.norm = Normalize(*np.percentile(known, (1, 99)))
        errors = [self._difference(panel) for panel in panels]
        self.difference_norm = Normalize(0, max(float(np.percentile(errors, 98)), 1e-6))
        self.colours = f"{depth_pictures.DEPTH_COLOURS}_r" if self.inverse else depth_pictures.DEPTH_COLOURS
        self.metric = truth is not None

    def _difference(self, panel: Panel) -> np.ndarray:
        return depth_pictures.relative_difference(panel.dense.numpy(), panel.accelerated.numpy(), self.inverse)

    def show(self, axis, panel: Panel, kind: str) -> None:
        values = getattr(panel, kind).numpy()
        axis.imshow(np.ma.masked_equal(values, 0) if kind == "truth" else values, cmap=self.colours, norm=self.norm)

    def show_difference(self, axis, panel: Panel) -> None:
        axis.imshow(self._difference(panel), cmap=depth_pictures.ERROR_COLOURS, norm=self.difference_norm)

    def legend(self, figure: Figure, axes: Sequence) -> None:
        said = "inverse depth" if self.inverse else "depth [m]" if self.metric else "depth"
        colour_bar(figure, axes[1:3], self.colours, self.norm, said)
        by = "range of dense" if self.inverse else "dense"
        said = f"|accelerated - dense| / {by}"
        colour_bar(figure, axes[3:4], depth_pictures.ERROR_COLOURS, self.difference_norm, said)

    def say(self, panel: Panel) -> str:
        return f"mean relative difference {self._difference(panel).mean():.4f}"


class _Segmentation:
    """How classes are drawn, with their names below."""

    @staticmethod
    def prepare(panel: Panel) -> Panel:
        return panel

    def __init__(self, task: Task, panels: Sequence[Panel]):
        self.panels, self.names = panels, task.protocol.class_names
        self.handles, self.colours = segmentation_pictures.class_handles(self.as_classes(panels), self.names)
        self.kinds = segmentation_pictures.difference_handles([self.comparable(panel) for panel in panels])
        longest = max((len(handle.get_label()) for handle in self.handles), default=0)
        self.columns = max(1, int(3 * _AREA**0.5 / (0.4 + 0.062 * longest)))
        lines = max(-(-len(self.handles) // self.columns), len(self.kinds))
        self.foot = 0.2 + segmentation_pictures.LEGEND_LINE * lines

    def as_classes(self, panels: Sequence[Panel]) -> Sequence[Panel]:
        return panels

    def comparable(self, panel: Panel) -> Panel:
        return panel

    def show(self, axis, panel: Panel, kind: str) -> None:
        segmentation_pictures.show_classes(axis, getattr(panel, kind), self.colours, panel.image)

    def show_difference(self, axis, panel: Panel) -> None:
        segmentation_pictures.show_differences(axis, self.comparable(panel))

    def legend(self, figure: Figure, axes: Sequence) -> None:
        segmentation_pictures.class_legend(figure, axes[:3], self.handles, self.columns)
        segmentation_pictures.class_legend(figure, axes[3:], self.kinds, 1)

    def say(self, panel: Panel) -> str:
        return f"{(panel.dense == panel.accelerated).double().mean():.2%} of the pixels agree"


class _Panoptic(_Segmentation):
    """How segments are drawn: the class's colour, a shade for each object, and borders."""

    def __init__(self, task: Task, panels: Sequence[Panel]):
        self.things = task.protocol.things
        super().__init__(task, panels)

    @staticmethod
    def prepare(panel: Panel) -> Panel:
        return panoptic_pictures.paired(panel)

    def as_classes(self, panels: Sequence[Panel]) -> Sequence[Panel]:
        return [panoptic_pictures.with_classes(panel) for panel in panels]

    def comparable(self, panel: Panel) -> Panel:
        return panoptic_pictures.comparable(panel)

    def show(self, axis, panel: Panel, kind: str) -> None:
        panoptic_pictures.show_segments(axis, getattr(panel, kind), self.colours, panel.image)

    def say(self, panel: Panel) -> str:
        sums = image_sums(panel.accelerated, panel.dense, len(self.things))
        if not sums[-1]:
            return "the dense model finds no segment"
        return f"PQ against the dense segments {metrics_from_sums(sums, self.things)['pq'].item():.3f}"


_PAINTERS = {"depth-estimation": _Depth, "image-segmentation": _Segmentation, "panoptic-segmentation": _Panoptic}


def sayings(task: Task, views: Sequence[View]) -> list[str]:
    """For each setting, how far its output is from the dense one, and its cost."""
    painter = _PAINTERS[task.name](task, [view.panel for view in views])
    return [f"{100 * view.gflops_ratio:.0f} % of the GFLOPs; {painter.say(view.panel)}" for view in views]


def draw_views(task: Task, views: Sequence[View], path: str | Path | None, heading: str = "") -> Figure:
    """Draws the image, its tokens and the dense output, then for each setting a line of clusters, colours and output.

    Args:
        task: Of the model; depth, semantic or panoptic segmentation.
        views: From `make_views`, all of one image.
        path: PNG file to write, None for none.
        heading: Line over the figure.
    """
    kind = _PAINTERS[task.name]
    said = sayings(task, views)
    panels = [kind.prepare(view.panel) for view in views]
    painter = kind(task, panels)
    figure, axes = _empty_lines(panels[0].image.shape[:2], len(views) + 1, heading, painter.foot)
    first = panels[0]
    known = first.truth is not None
    tokens = np.arange(first.labels.numel()).reshape(first.labels.shape)
    for axis, name in zip(
        axes[0], ("image", f"its {' x '.join(map(str, tokens.shape))} tokens", "dense", "truth"), strict=True
    ):
        axis.set_title(name if name != "truth" or known else "", fontsize=_SMALL, pad=3)
    axes[0][0].imshow(first.image)
    axes[0][1].imshow(mean_colours(first.image, tokens))
    painter.show(axes[0][2], first, "dense")
    if known:
        painter.show(axes[0][3], first, "truth")
    axes[0][3].set_visible(known)
    for number, (line, view, panel, text) in enumerate(zip(axes[1:], views, panels, said, strict=True)):
        show_clusters(line[0], panel)
        line[1].imshow(mean_colours(panel.image, panel.labels.numpy()))
        painter.show(line[2], panel, "accelerated")
        painter.show_difference(line[3], panel)
        _head_of_line(figure, line[0], f"{view.name}: {text}", names=number == 0)
        if number == 0:
            for axis, name in zip(
                line, ("clusters", "mean colours of clusters", "accelerated", "difference"), strict=True
            ):
                axis.set_title(name, fontsize=_SMALL, pad=3)
    painter.legend(figure, axes[-1])
    if path is not None:
        figure.savefig(path)
    return figure


def _empty_lines(size: tuple[int, int], lines: int, heading: str, foot: float) -> tuple[Figure, list[list]]:
    """Axes in lines whose cells have the shape of the image, with room for text over each line."""
    ratio = size[0] / size[1]
    wide = min(max((_AREA / ratio) ** 0.5, 1.9), 3.2)
    high = wide * ratio
    # Over the first line are the heading and names, over the second its heading and names, over others a heading.
    above = [_HEAD + _NAMES, _LINE + _NAMES + _GAP, *[_LINE + _GAP] * (lines - 2)]
    width, height = _COLUMNS * wide + (_COLUMNS + 1) * _GAP, lines * high + sum(above) + foot
    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    axes, top = [], height
    for space in above:
        top -= space + high
        places = [(_GAP + i * (wide + _GAP), top) for i in range(_COLUMNS)]
        axes.append([figure.add_axes([x / width, y / height, wide / width, high / height]) for x, y in places])
    for axis in (axis for line in axes for axis in line):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(heading, fontsize=_NORMAL + 1, x=_GAP / width, y=1 - 0.08 / height, ha="left", va="top")
    return figure, axes


def _head_of_line(figure: Figure, axis, text: str, names: bool) -> None:
    """Text over a line of axes, and over the names of its columns where it has some."""
    place, height = axis.get_position(), figure.get_size_inches()[1]
    y = place.y1 + (0.06 + names * _NAMES) / height
    figure.text(place.x0, y, text, fontsize=_NORMAL, ha="left", va="bottom")


def draw_parts(task: Task, view: View, parts: Sequence[str]) -> list[np.ndarray]:
    """Pictures of their own, uint8 (h, w, 3), in place of one figure.

    Args:
        task: Of the model.
        view: One setting on one image.
        parts: Of "dense", "accelerated", "difference", "clusters" and "mean colours".
    """
    kind = _PAINTERS[task.name]
    panel = kind.prepare(view.panel)
    painter = kind(task, [panel])
    draw = {
        "clusters": lambda axis: show_clusters(axis, panel),
        "mean colours": lambda axis: axis.imshow(mean_colours(panel.image, panel.labels.numpy())),
        "dense": lambda axis: painter.show(axis, panel, "dense"),
        "accelerated": lambda axis: painter.show(axis, panel, "accelerated"),
        "difference": lambda axis: painter.show_difference(axis, panel),
    }
    height, width = panel.image.shape[:2]
    pictures = []
    for part in parts:
        figure = Figure(figsize=(4, 4 * height / width), dpi=150)
        canvas = FigureCanvasAgg(figure)
        axis = figure.add_axes([0, 0, 1, 1])
        axis.set_axis_off()
        draw[part](axis)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures
