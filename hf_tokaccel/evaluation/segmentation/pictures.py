"""Figures of segmentation: classes predicted by the dense and the accelerated model side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ...measure.metrics.segmentation import IGNORED
from ..pictures import Panel, empty_grid, show_clusters

# Calm colours first: early classes tend to be walls, roads and skies, which fill a picture.
PALETTE = (
    *("#c9a87c", "#dbe4ec", "#9db4c0", "#7a4b2b", "#4cc9f0", "#f72585", "#b5179e", "#2a9d8f", "#e76f51", "#3a5ba0"),
    *("#8338ec", "#ffbe0b", "#bc6c25", "#d00000", "#343a40", "#fff3b0", "#ff99c8", "#38b000", "#6c757d", "#006d77"),
    *("#fb8500", "#a2d2ff", "#606c38", "#cdb4db", "#540b0e", "#80ed99", "#03045e", "#e9c46a"),
)
UNKNOWN = "#ffffff"
DIFFERENCES = {
    "only dense is right": "#d62828",
    "only accelerated is right": "#1d6fd1",
    "both wrong, but not alike": "#f4a300",
    "they differ, truth unknown": "#8d8d8d",
}
DIFFER = {"they differ": "#d62828"}
MAX_NAMED = 35  # classes in a legend
_LEGEND = {
    **{"loc": "upper left", "frameon": False, "fontsize": 7, "handlelength": 1.1, "handleheight": 1.0},
    **{"columnspacing": 1.2, "labelspacing": 0.35},
}
LEGEND_LINE = 0.165  # inches of a line of a legend


def class_colours(num_classes: int, present: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """Colour of each class that is present: always the same one where the palette has enough for all classes."""
    places = {c: c if num_classes <= len(PALETTE) else i for i, c in enumerate(present)}

    def colour(place: int) -> tuple[float, float, float]:
        turn, index = divmod(place, len(PALETTE))
        base, share = np.array(to_rgb(PALETTE[index])), 0.5 ** ((turn + 1) // 2)
        # Every second turn of the palette is lighter, the others darker.
        return tuple(base * share + (1 - share) * (turn % 2))

    return {c: colour(place) for c, place in places.items()}


def by_area(panels: Sequence[Panel]) -> list[int]:
    """Classes in any map of the panels, the one with most pixels first."""
    maps = [m for p in panels for m in (p.truth, p.dense, p.accelerated) if m is not None]
    classes, counts = np.unique(np.concatenate([m.numpy().ravel() for m in maps]), return_counts=True)
    return [int(classes[i]) for i in np.argsort(-counts, kind="stable") if classes[i] != IGNORED]


def paint(classes: np.ndarray, colours: dict, image: np.ndarray) -> np.ndarray:
    """Class map (H, W) as colours (H, W, 3), shaded a little by the image where that has the same size."""
    painted = np.empty((*classes.shape, 3))
    painted[:] = to_rgb(UNKNOWN)
    for index, colour in colours.items():
        painted[classes == index] = colour
    if image.shape[:2] != classes.shape:
        return painted
    grey = image.mean(-1, keepdims=True) / 255
    return np.clip(painted * (0.86 + 0.28 * grey), 0, 1)


def differences(panel: Panel) -> tuple[np.ndarray, dict[str, str]]:
    """Where the two predictions differ, by who is right: index into the returned kinds (H, W), -1 where they agree."""
    dense, accelerated = panel.dense.numpy(), panel.accelerated.numpy()
    kinds = np.full(dense.shape, -1)
    differ = dense != accelerated
    if panel.truth is None:
        kinds[differ] = 0
        return kinds, DIFFER
    truth = panel.truth.numpy()
    kinds[differ] = 2
    kinds[differ & (dense == truth)] = 0
    kinds[differ & (accelerated == truth)] = 1
    kinds[differ & (truth == IGNORED)] = 3
    return kinds, DIFFERENCES


def show_differences(axis, panel: Panel) -> None:
    """Draws them on the pale image."""
    kinds, colours = differences(panel)
    grey = panel.image.mean(-1, keepdims=True).repeat(3, -1) / 255
    axis.imshow(0.7 + 0.3 * grey)
    marks = np.zeros((*kinds.shape, 4))
    for index, colour in enumerate(colours.values()):
        marks[kinds == index] = (*to_rgb(colour), 1)
    axis.imshow(marks, interpolation="nearest")


def difference_handles(panels: Sequence[Panel]) -> list[Patch]:
    """Legend of the kinds that occur."""
    found = [differences(panel) for panel in panels]
    occur = set(np.concatenate([np.unique(kinds) for kinds, _ in found]).tolist())
    return [Patch(facecolor=c, label=n) for i, (n, c) in enumerate(found[0][1].items()) if i in occur]


def class_handles(panels: Sequence[Panel], class_names: Sequence[str]) -> tuple[list[Patch], dict]:
    """Legend of the classes that occur, and their colours."""
    present = by_area(panels)
    colours = class_colours(len(class_names), present)
    named = sorted(present[:MAX_NAMED])
    handles = [Patch(facecolor=colours[c], edgecolor="0.6", linewidth=0.3, label=class_names[c]) for c in named]
    if len(present) > len(named):
        handles.append(Patch(facecolor="none", label=f"and {len(present) - len(named)} smaller ones"))
    return handles, colours


def class_legend(figure: Figure, axes: Sequence, handles: list[Patch], columns: int) -> None:
    """Names of colours under the given axes of the last line."""
    left, right = axes[0].get_position().x0, axes[-1].get_position().x1
    bottom = axes[0].get_position().y0
    place = figure.add_axes([left, 0, right - left, bottom])
    place.set_axis_off()
    place.legend(handles=handles, ncols=columns, borderaxespad=0.6, borderpad=0, **_LEGEND)


def show_classes(axis, classes: Tensor, colours: dict, image: np.ndarray) -> None:
    axis.imshow(paint(classes.numpy(), colours, image), interpolation="nearest")


def draw_segmentation(
    panels: Sequence[Panel],
    path: str | Path,
    class_names: Sequence[str],
    *,
    heading: str = "",
    as_classes: Callable[[Panel], Panel] = lambda panel: panel,
    comparable: Callable[[Panel], Panel] = lambda panel: panel,
    show: Callable = show_classes,
) -> Path:
    """Image, truth if it is known, both predictions, where they differ, and the clusters.

    Args:
        panels: Lines of the figure; maps hold classes (H, W), `IGNORED` where unknown, unless told otherwise.
        path: PNG file to write.
        class_names: Of all classes.
        heading: Line over the figure.
        as_classes: From a panel to one whose maps hold classes.
        comparable: From a panel to one whose maps are equal where they agree.
        show: Draws a map, given axis, map, colour by class, and image.
    """
    known = panels[0].truth is not None
    titles = ["image", *(["truth"] if known else []), "dense", "accelerated", "disagreement", "clusters"]
    classes, colours = class_handles([as_classes(panel) for panel in panels], class_names)
    compared = [comparable(panel) for panel in panels]
    kinds = difference_handles(compared)
    maps = len(titles) - 2
    longest = max((len(handle.get_label()) for handle in classes), default=0)  # where all is void
    columns = max(1, int(maps * 1.75 / (0.33 + 0.062 * longest)))
    lines = max(-(-len(classes) // columns), len(kinds))
    figure, axes = empty_grid(panels, titles, heading, foot=0.16 + LEGEND_LINE * lines)
    for line, panel, pair in zip(axes, panels, compared, strict=True):
        line[0].imshow(panel.image)
        shown = [panel.truth] * known + [panel.dense, panel.accelerated]
        for axis, values in zip(line[1:], shown, strict=False):
            show(axis, values, colours, panel.image)
        show_differences(line[-2], pair)
        show_clusters(line[-1], panel)
    class_legend(figure, axes[-1, :maps], classes, columns)
    class_legend(figure, axes[-1, maps:], kinds, 1)
    figure.savefig(path)
    return Path(path)
