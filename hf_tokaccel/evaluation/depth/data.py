"""Depth data sets: our scenes, `datasets` folders and Hub names, and the usual layouts of NYUv2 and KITTI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...checks import UserError, did_you_mean
from ...images import as_rgb, read_image
from ...measure.metrics.depth import DepthProtocol
from ..datasets import (
    MappedSamples,
    Rule,
    check_columns,
    check_limit,
    find_pairs,
    load_table,
    open_scenes,
    read_map,
    read_row,
)
from .options import SPECIFICATIONS

DEFAULT_SCENES = 100  # fewer than elsewhere, since README's first command is to end soon


@dataclass(frozen=True)
class DepthDataset:
    """Images with true depth, and how the benchmark scores them.

    Attributes:
        name: For the report.
        samples: Items with `image`, uint8 (H, W, 3), and `depth`, float32 (H', W') in metres with 0 where unknown.
        min_depth: Smallest depth that counts, in metres.
        max_depth: Largest depth that counts, in metres.
        crop: Name for `crop_mask`.
    """

    name: str
    samples: Sequence[dict]
    min_depth: float = 1e-3
    max_depth: float = 10.0
    crop: str = "none"

    def protocol(self, alignment: str, inverse: bool) -> DepthProtocol:
        return DepthProtocol(self.min_depth, self.max_depth, self.crop, alignment, inverse)


def read_depth(path: str | Path, units_per_metre: float) -> torch.Tensor:
    """16-bit depth image as float32 metres (H, W); zero stays zero, which means unknown.

    Raises:
        UnreadableError: It cannot be read.
        ValueError: An image of 8 bits, which cannot hold depth in the stated unit.
    """
    values = read_map(path)
    if values.dtype == np.uint8 or values.ndim != 2:
        raise UserError(
            f"depth image {path} must have one channel of 16 bits, but has shape {values.shape}, type {values.dtype}"
        )
    return torch.from_numpy(values.astype(np.float32) / units_per_metre)


@dataclass(frozen=True)
class Layout:
    """Folder convention of a benchmark.

    Attributes:
        rules: Where images and depth files are.
        units_per_metre: Of the 16-bit depth files.
        max_depth: Largest depth that counts, in metres.
        crop: Name for `crop_mask`.
        expected: What the folder should hold, for error messages.
    """

    rules: tuple[Rule, ...]
    units_per_metre: float
    max_depth: float
    crop: str
    expected: str


def _kitti_raw(path: str) -> str:
    """Image of the raw data for a depth map of the depth benchmark: DRIVE/proj_depth/groundtruth/CAMERA/FRAME."""
    drive, camera, frame = re.search(r"([^/]+)/proj_depth/groundtruth/(image_0[23])/([^/]+)$", path).groups()
    return f"{drive[:10]}/{drive}/{camera}/data/{frame}"


LAYOUTS = {
    "nyuv2": Layout(
        rules=(
            Rule("**/depth/*.png", lambda p: re.sub(r"(^|/)depth/([^/]*)$", r"\1rgb/\2", p)),
            Rule("**/sync_depth_*.png", lambda p: re.sub(r"sync_depth_([^/]*)$", r"rgb_\1", p)),
            Rule("**/*_depth.png", lambda p: re.sub(r"_depth$", "_colors", p)),
        ),
        units_per_metre=1000,
        max_depth=10,
        crop="eigen",
        expected="16-bit PNG depth of 480x640 in millimetres as rgb/NAME.png|jpg + depth/NAME.png, "
        "rgb_N.jpg + sync_depth_N.png, or N_colors.png + N_depth.png",
    ),
    "kitti": Layout(
        rules=(
            Rule("**/groundtruth_depth/*.png", lambda p: re.sub(r"groundtruth_depth(?=[/_])", "image", p)),
            Rule("**/proj_depth/groundtruth/image_0[23]/*.png", _kitti_raw),
            Rule("**/depth/*.png", lambda p: re.sub(r"(^|/)depth/([^/]*)$", r"\1rgb/\2", p)),
        ),
        units_per_metre=256,
        max_depth=80,
        crop="garg",
        expected="16-bit PNG depth in 1/256 metre as image/X_sync_image_N.png + "
        "groundtruth_depth/X_sync_groundtruth_depth_N.png (val_selection_cropped), "
        "DRIVE/proj_depth/groundtruth/image_02/N.png + DATE/DRIVE/image_02/data/N.png (raw data), or "
        "rgb/NAME.png + depth/NAME.png",
    ),
}


def _open_layout(kind: str, folder: str, limit: int | None) -> DepthDataset:
    layout = LAYOUTS[kind]

    def read(pair: tuple[Path, Path]) -> dict:
        return {"image": read_image(pair[0], upright=False), "depth": read_depth(pair[1], layout.units_per_metre)}

    pairs, _ = find_pairs(Path(folder), layout.rules, layout.expected, "depth maps")
    samples = MappedSamples(pairs, read, limit)
    return DepthDataset(f"{kind}:{folder}", samples, max_depth=layout.max_depth, crop=layout.crop)


def _open_table(
    name: str,
    split: str,
    limit: int | None,
    columns: tuple[str, str],
    depth_scale: float | None,
    max_depth: float | None,
) -> DepthDataset:
    table = load_table(name, split, SPECIFICATIONS)
    check_columns(table, name, dict(zip(("--image-column", "--depth-column"), columns, strict=True)))

    def read(index: int) -> dict:
        row = read_row(table, index, name)
        values = np.asarray(row[columns[1]])
        if values.ndim == 3:
            values = values.squeeze(-1 if values.shape[-1] == 1 else 0)
        if depth_scale is None and values.dtype.kind in "iu":
            raise UserError(
                f"column {columns[1]!r} of dataset {name!r} holds whole numbers of unknown unit; say how many make "
                "a metre, for example --depth-scale 1000 for millimetres"
            )
        depth = torch.from_numpy(values.astype(np.float32) / (depth_scale or 1))
        return {"image": np.array(as_rgb(row[columns[0]])), "depth": depth}

    samples = MappedSamples(range(len(table)), read, limit)
    return DepthDataset(f"{name} ({split})", samples, max_depth=max_depth or 80)


def open_depth_dataset(
    specification: str = "scenes",
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (192, 192),
    columns: tuple[str, str] = ("image", "depth"),
    depth_scale: float | None = None,
    max_depth: float | None = None,
) -> DepthDataset:
    """Open a depth data set by name.

    - `scenes`: rendered rooms, held out from training.
    - `nyuv2:DIR`, `kitti:DIR`: see `LAYOUTS`; Eigen crop and 1e-3 to 10 m, Garg crop and 1e-3 to 80 m.
    - A folder that `datasets` reads (saved by `save_to_disk`, or of images or parquet files), or a Hub name.

    Args:
        specification: One of the above.
        split: Of `scenes` and of `datasets`.
        limit: Number of images at most; None means all (`DEFAULT_SCENES` scenes).
        seed: Of the scenes.
        size: Of the scenes in pixels, (height, width).
        columns: Names of the image and the depth column of a `datasets` table.
        depth_scale: Stored units per metre in its depth column; must be given for whole numbers.
        max_depth: Largest depth that counts for `datasets` tables, in metres; None means 80.

    Raises:
        ValueError: Unknown name or layout, missing files or columns, nothing to read.
    """
    check_limit(limit)
    kind, colon, folder = specification.partition(":")
    if specification == "scenes":
        count = DEFAULT_SCENES if limit is None else limit
        scenes = open_scenes("any", split, count, seed, size, depth=lambda item: item["depth"])
        dataset = DepthDataset(f"scenes ({split}, seed {seed})", scenes)
    elif colon and kind in LAYOUTS:
        dataset = _open_layout(kind, folder, limit)
    elif colon:
        near = did_you_mean(kind, LAYOUTS)
        raise UserError(f"dataset layout {kind!r} must be one of {', '.join(LAYOUTS)}; use {SPECIFICATIONS}{near}")
    else:
        dataset = _open_table(specification, split, limit, columns, depth_scale, max_depth)
    if len(dataset.samples) == 0:
        raise UserError(f"dataset {specification!r} is empty; use {SPECIFICATIONS}")
    return dataset
