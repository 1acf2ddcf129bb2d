"""Depth data sets: our scenes, `datasets` folders and Hub names, and the usual layouts of NYUv2 and KITTI."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .depth import DepthProtocol

SPECIFICATIONS = (
    "scenes, nyuv2:DIR, kitti:DIR, a folder that the datasets library reads, or a Hub name such as owner/name"
)

DEFAULT_SCENES = 200


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


class MappedSamples(Dataset):
    """Items of a sequence, read when they are asked for."""

    def __init__(self, items: Sequence, read: Callable[[object], dict], limit: int | None = None):
        self.items, self.read = items, read
        self.length = len(items) if limit is None else min(limit, len(items))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.read(self.items[index])


class SceneSamples(Dataset):
    """Rendered scenes with channels last; a batch is rendered in one go."""

    def __init__(self, scenes: Dataset):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        items = self.scenes.__getitems__(indices)
        return [
            {"image": item["image"].permute(1, 2, 0).contiguous().numpy(), "depth": item["depth"]} for item in items
        ]


def read_image(path: str | Path) -> np.ndarray:
    """Image file as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def read_depth(path: str | Path, units_per_metre: float) -> torch.Tensor:
    """16-bit depth image as float32 metres (H, W); zero stays zero, which means unknown.

    Raises:
        ValueError: An image of 8 bits, which cannot hold depth in the stated unit.
    """
    with Image.open(path) as image:
        values = np.asarray(image)
    if values.dtype == np.uint8 or values.ndim != 2:
        raise ValueError(
            f"depth image {path} must have one channel of 16 bits, but has shape {values.shape}, type {values.dtype}"
        )
    return torch.from_numpy(values.astype(np.float32) / units_per_metre)


@dataclass(frozen=True)
class Layout:
    """Folder convention of a benchmark.

    Attributes:
        rules: Pairs of a glob of depth files and a function from their path below the folder to that of the image,
            both without suffix.
        units_per_metre: Of the 16-bit depth files.
        max_depth: Largest depth that counts, in metres.
        crop: Name for `crop_mask`.
        expected: What the folder should hold, for error messages.
    """

    rules: tuple[tuple[str, Callable[[str], str]], ...]
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
            ("**/depth/*.png", lambda p: re.sub(r"(^|/)depth/([^/]*)$", r"\1rgb/\2", p)),
            ("**/sync_depth_*.png", lambda p: re.sub(r"sync_depth_([^/]*)$", r"rgb_\1", p)),
            ("**/*_depth.png", lambda p: re.sub(r"_depth$", "_colors", p)),
        ),
        units_per_metre=1000,
        max_depth=10,
        crop="eigen",
        expected="16-bit PNG depth of 480x640 in millimetres as rgb/NAME.png|jpg + depth/NAME.png, "
        "rgb_N.jpg + sync_depth_N.png, or N_colors.png + N_depth.png",
    ),
    "kitti": Layout(
        rules=(
            ("**/groundtruth_depth/*.png", lambda p: re.sub(r"groundtruth_depth(?=[/_])", "image", p)),
            ("**/proj_depth/groundtruth/image_0[23]/*.png", _kitti_raw),
            ("**/depth/*.png", lambda p: re.sub(r"(^|/)depth/([^/]*)$", r"\1rgb/\2", p)),
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


def find_pairs(root: Path, layout: Layout) -> list[tuple[Path, Path]]:
    """Pairs of image and depth files, sorted by the depth file's path.

    Raises:
        ValueError: No depth file, or depth files without an image; the missing ones are named.
    """
    pairs, missing = [], []
    for pattern, image_of in layout.rules:
        for depth in sorted(root.glob(pattern)):
            stem = root / image_of(depth.relative_to(root).with_suffix("").as_posix())
            images = [stem.with_name(stem.name + suffix) for suffix in (".png", ".jpg", ".jpeg")]
            found = next((image for image in images if image.is_file()), None)
            if found is None:
                missing.append(images[0])
            else:
                pairs.append((found, depth))
        if pairs or missing:
            break
    if missing:
        names = ", ".join(str(path.relative_to(root)) for path in missing[:3])
        raise ValueError(
            f"{root} lacks the images of {len(missing)} depth maps: {names} (or .jpg); expected {layout.expected}"
        )
    if not pairs:
        raise ValueError(f"{root} has no depth maps; expected {layout.expected}")
    return pairs


def _open_layout(kind: str, folder: str, limit: int | None) -> DepthDataset:
    layout, root = LAYOUTS[kind], Path(folder)
    if not root.is_dir():
        raise ValueError(f"dataset folder {folder!r} does not exist; expected {layout.expected}")

    def read(pair: tuple[Path, Path]) -> dict:
        return {"image": read_image(pair[0]), "depth": read_depth(pair[1], layout.units_per_metre)}

    samples = MappedSamples(find_pairs(root, layout), read, limit)
    return DepthDataset(f"{kind}:{folder}", samples, max_depth=layout.max_depth, crop=layout.crop)


def _open_scenes(split: str, limit: int | None, seed: int, size: tuple[int, int]) -> DepthDataset:
    from hf_tokaccel.scenes import SceneDataset

    scenes = SceneDataset(split=split, length=limit or DEFAULT_SCENES, size=size, seed=seed)
    return DepthDataset(f"scenes ({split}, seed {seed})", SceneSamples(scenes))


def _load_table(name: str, split: str):
    import datasets

    if Path(name).is_dir():
        folder = Path(name)
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(name)
            if split not in splits:
                raise ValueError(f"dataset {name!r} has no split {split!r}; it has {', '.join(splits)}")
            return splits[split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(name)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"dataset {name!r} is neither known nor a folder; use {SPECIFICATIONS}")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # The library raises a different type for each of network, name, split and file format.
        raise ValueError(
            f"dataset {name!r}, split {split!r} cannot be loaded: {error}; use {SPECIFICATIONS}"
        ) from error


def _open_table(
    name: str,
    split: str,
    limit: int | None,
    columns: tuple[str, str],
    depth_scale: float | None,
    max_depth: float | None,
) -> DepthDataset:
    table = _load_table(name, split)
    for column in columns:
        if column not in table.column_names:
            raise ValueError(
                f"dataset {name!r} has no column {column!r}; it has {', '.join(table.column_names)}; "
                "choose with --image-column and --depth-column"
            )

    def read(index: int) -> dict:
        row = table[index]
        values = np.asarray(row[columns[1]])
        if values.ndim == 3:
            values = values.squeeze(-1 if values.shape[-1] == 1 else 0)
        if depth_scale is None and values.dtype.kind in "iu":
            raise ValueError(
                f"column {columns[1]!r} of dataset {name!r} holds whole numbers of unknown unit; say how many make "
                "a metre, for example --depth-scale 1000 for millimetres"
            )
        depth = torch.from_numpy(values.astype(np.float32) / (depth_scale or 1))
        return {"image": np.array(row[columns[0]].convert("RGB")), "depth": depth}

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
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1, for example 100")
    kind, colon, folder = specification.partition(":")
    if specification == "scenes":
        dataset = _open_scenes(split, limit, seed, size)
    elif colon and kind in LAYOUTS:
        dataset = _open_layout(kind, folder, limit)
    elif colon:
        raise ValueError(f"dataset layout {kind!r} must be one of {', '.join(LAYOUTS)}; use {SPECIFICATIONS}")
    else:
        dataset = _open_table(specification, split, limit, columns, depth_scale, max_depth)
    if len(dataset.samples) == 0:
        raise ValueError(f"dataset {specification!r} is empty; use {SPECIFICATIONS}")
    return dataset


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")


def open_photographs(paths: Sequence[str | Path] = ()) -> dict[str, np.ndarray]:
    """Photographs by name, uint8 (H, W, 3): the given files, or those that scikit-image carries in its package.

    Raises:
        ValueError: A file that is missing or is no image, or scikit-image is not installed.
    """
    if not paths:
        try:
            import skimage.data
        except ImportError as error:
            raise ValueError(
                "--images without paths shows photographs of scikit-image: pip install scikit-image, or give files"
            ) from error
        folder = Path(skimage.data.__file__).parent
        paths = [next(folder.glob(f"{name}.*"), folder / f"{name}.png") for name in PHOTOGRAPHS]
    missing = [str(path) for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"image {', '.join(missing)} does not exist; give image files, or no path for those of scikit-image"
        )
    images = {}
    for path in map(Path, paths):
        try:
            images[path.stem] = read_image(path)
        except OSError as error:
            raise ValueError(f"{path} is not an image that Pillow reads: {error}") from error
    return images
