"""Segmentation data sets: our scenes, `datasets` tables, and the layouts of ADE20K, Cityscapes and Pascal Context."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...checks import UserError, did_you_mean
from ...images import as_rgb, read_image
from ...measure.metrics.segmentation import IGNORED
from ...scenes import CLASS_NAMES
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


@dataclass(frozen=True)
class SegmentationDataset:
    """Images with true classes, and how the benchmark presents them.

    Attributes:
        name: For the report.
        samples: Items with `name`, `image`, uint8 (H, W, 3), and `label`, int16 (H, W) with `IGNORED` where unknown.
        num_classes: Number of classes.
        class_names: Their names, if the data set has any.
        ignored: Which stored values do not count, for the report.
        resizes: Whether sliding windows see images whose shorter side is the crop; otherwise they see the stored size.
    """

    name: str
    samples: Sequence[dict]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    ignored: str = "none"
    resizes: bool = False


def to_classes(values: np.ndarray, classes: Mapping[int, int], name: str) -> torch.Tensor:
    """Class of every pixel, int16 (H, W).

    Args:
        values: Stored whole numbers (H, W).
        classes: From stored values to classes or `IGNORED`.
        name: Of the label image, for error messages.

    Raises:
        ValueError: Not one whole number per pixel, or a value that is not in `classes`.
    """
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values.squeeze(-1 if values.shape[-1] == 1 else 0)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise UserError(
            f"label image {name} must have one whole number per pixel, (H, W), but has shape {values.shape} and type "
            f"{values.dtype}"
        )
    values = values.astype(np.int64)
    unknown = [int(value) for value in np.unique(values) if int(value) not in classes]
    if unknown:
        known = sorted(classes)
        raise UserError(
            f"label image {name} holds the value {unknown[0]}, which is no class: the data set's values are "
            f"{_ranges(known)}"
        )
    low = min(classes)
    table = np.full(max(classes) - low + 1, IGNORED, dtype=np.int16)
    for value, class_index in classes.items():
        table[value - low] = class_index
    return torch.from_numpy(table[values - low])


def _ranges(values: Sequence[int]) -> str:
    """Sorted whole numbers in words: 0 to 18, 255."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], value]
        else:
            runs.append([value])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def stored_classes(num_classes: int, ignored: Sequence[int] = (), first_ignored: bool = False) -> dict[int, int]:
    """Plain meaning of stored values: classes from 0, or from 1 where 0 does not count, and ignored values.

    Raises:
        ValueError: An ignored value is a class.
    """
    classes = {value + first_ignored: value for value in range(num_classes)}
    if clash := sorted(set(classes) & set(ignored)):
        raise UserError(
            f"label value {clash[0]} cannot be ignored, since it is one of the {num_classes} classes "
            f"({_ranges(sorted(classes))}); for example ignore 255"
        )
    return dict.fromkeys(((0,) if first_ignored else ()) + tuple(ignored), IGNORED) | classes


CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
# Label ids of the classes above; the other ids up to 33, and 255 for the licence plate's -1, do not count.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_LABELS = dict.fromkeys((*range(34), 255), IGNORED) | {v: i for i, v in enumerate(_CITYSCAPES_IDS)}


def _cityscapes_image(path: str) -> str:
    return re.sub(r"_gtFine_label(Train)?Ids$", "_leftImg8bit", re.sub(r"(^|/)gtFine/", r"\1leftImg8bit/", path))


@dataclass(frozen=True)
class Layout:
    """Folder convention of a benchmark.

    Attributes:
        rules: Where images and labels are, `{split}` standing for the split, and what the values mean.
        split: The one that is evaluated by default.
        num_classes: Number of classes.
        ignored: Which stored values do not count, in words.
        expected: What the folder should hold, for error messages.
        resizes: See `SegmentationDataset`.
        class_names: Names of the classes, if they are few enough to write down; otherwise those of the model serve.
        listing: Glob of a text file that names the images of the split.
    """

    rules: tuple[Rule, ...]
    split: str
    num_classes: int
    ignored: str
    expected: str
    resizes: bool
    class_names: tuple[str, ...] | None = None
    listing: str | None = None


def _pascal_context(num_classes: int) -> Layout:
    classes = stored_classes(num_classes, first_ignored=num_classes == 59)
    image = Rule(
        "**/SegmentationClassContext/*.png",
        lambda p: re.sub(r"(^|/)SegmentationClassContext/", r"\1JPEGImages/", p),
        classes,
    )
    return Layout(
        rules=(image,),
        split="val",
        num_classes=num_classes,
        ignored="0 (background)" if num_classes == 59 else "none",
        expected="JPEGImages/NAME.jpg + SegmentationClassContext/NAME.png (values 0 to 59) + "
        "ImageSets/SegmentationContext/{split}.txt, all below one folder such as VOC2010",
        resizes=True,
        listing="**/ImageSets/SegmentationContext/{split}.txt",
    )


LAYOUTS = {
    "ade20k": Layout(
        rules=(
            Rule(
                "**/annotations/{split}/*.png",
                lambda p: re.sub(r"(^|/)annotations/", r"\1images/", p),
                stored_classes(150, first_ignored=True),
            ),
        ),
        split="validation",
        num_classes=150,
        ignored="0 (other)",
        expected="images/{split}/NAME.jpg + annotations/{split}/NAME.png (values 0 to 150) of ADEChallengeData2016",
        resizes=True,
    ),
    "cityscapes": Layout(
        rules=(
            Rule("**/gtFine/{split}/*/*_gtFine_labelIds.png", _cityscapes_image, _CITYSCAPES_LABELS),
            Rule("**/gtFine/{split}/*/*_gtFine_labelTrainIds.png", _cityscapes_image, stored_classes(19, (255,))),
        ),
        split="val",
        num_classes=19,
        ignored="labels without a train id",
        expected="leftImg8bit/{split}/CITY/NAME_leftImg8bit.png + gtFine/{split}/CITY/NAME_gtFine_labelIds.png "
        "(or _labelTrainIds.png)",
        resizes=False,
        class_names=CITYSCAPES,
    ),
    "pascal_context59": _pascal_context(59),
    "pascal_context60": _pascal_context(60),
}


def _in_listing(root: Path, pattern: str, expected: str) -> Callable[[Path], bool]:
    """Whether a label file is named by the listing of the split."""
    found = sorted(root.glob(pattern))
    if root.is_dir() and not found:
        raise UserError(f"{root} has no {pattern.removeprefix('**/')}; expected {expected}")
    names = {line.split()[0] for path in found for line in path.read_text().splitlines() if line.strip()}
    return lambda path: path.stem in names


def _open_layout(kind: str, folder: str, split: str | None, limit: int | None) -> SegmentationDataset:
    layout, root = LAYOUTS[kind], Path(folder)
    split = split or layout.split
    expected = layout.expected.replace("{split}", split)
    rules = [Rule(rule.labels.replace("{split}", split), rule.image, rule.values) for rule in layout.rules]
    keep = {}
    if layout.listing is not None:
        keep["keep"] = _in_listing(root, layout.listing.replace("{split}", split), expected)
    pairs, rule = find_pairs(root, rules, expected, "label images", **keep)

    def read(pair: tuple[Path, Path]) -> dict:
        label = to_classes(read_map(pair[1]), rule.values, str(pair[1]))
        return {"name": str(pair[0]), "image": read_image(pair[0], upright=False), "label": label}

    return SegmentationDataset(
        f"{kind}:{folder} ({split})",
        MappedSamples(pairs, read, limit),
        layout.num_classes,
        layout.class_names,
        layout.ignored,
        layout.resizes,
    )


def _open_scenes(
    materials: str, split: str, limit: int | None, seed: int, size: tuple[int, int]
) -> SegmentationDataset:
    label = {"label": lambda item: item["labels"].to(torch.int16)}
    samples = open_scenes(materials, split, limit, seed, size, **label)
    name = f"scenes of {materials} materials ({split}, seed {seed})"
    return SegmentationDataset(name, samples, len(CLASS_NAMES), tuple(CLASS_NAMES))


def _open_table(
    name: str,
    split: str,
    limit: int | None,
    columns: tuple[str, str],
    num_classes: int,
    ignored: Sequence[int],
    first_ignored: bool,
) -> SegmentationDataset:
    classes = stored_classes(num_classes, ignored, first_ignored)
    table = load_table(name, split, SPECIFICATIONS)
    check_columns(table, name, dict(zip(("--image-column", "--label-column"), columns, strict=True)))

    def read(index: int) -> dict:
        row, where = read_row(table, index, name), f"in row {index} of {name}"
        label = to_classes(np.asarray(row[columns[1]]), classes, where)
        return {"name": where, "image": np.array(as_rgb(row[columns[0]])), "label": label}

    samples = MappedSamples(range(len(table)), read, limit)
    said = ", ".join(str(value) for value in sorted({*ignored, *((0,) if first_ignored else ())})) or "none"
    return SegmentationDataset(f"{name} ({split})", samples, num_classes, ignored=said)


def open_segmentation_dataset(
    specification: str = "scenes",
    *,
    num_classes: int,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (192, 192),
    columns: tuple[str, str] = ("image", "label"),
    ignored: Sequence[int] = (255,),
    first_ignored: bool = False,
) -> SegmentationDataset:
    """Open a segmentation data set by name.

    - `scenes`: rendered rooms of typical materials, held out from training, 19 classes; `scenes:any`: of any colour.
    - `ade20k:DIR`: 150 classes; the stored value 0 does not count.
    - `cityscapes:DIR`: 19 classes, from label ids or train ids.
    - `pascal_context59:DIR`, `pascal_context60:DIR`: without and with the background as a class.
    - A folder that `datasets` reads (saved by `save_to_disk`, or of images or parquet files), or a Hub name.

    Args:
        specification: One of the above.
        num_classes: Classes of the model, which must be those of the data set.
        split: None means that on which the benchmark is scored, and test for `scenes` and `datasets`.
        limit: Number of images at most; None means all (`DEFAULT_SCENES` scenes).
        seed: Of the scenes.
        size: Of the scenes in pixels, (height, width).
        columns: Names of the image and the label column of a `datasets` table.
        ignored: Label values of a `datasets` table that do not count.
        first_ignored: In a `datasets` table the label value 0 does not count, and classes are stored from 1.

    Raises:
        ValueError: Unknown name or layout, missing files or columns, nothing to read, another number of classes.
    """
    check_limit(limit)
    kind, colon, folder = specification.partition(":")
    if kind == "scenes":
        dataset = _open_scenes(folder or "typical", split or "test", limit, seed, size)
    elif colon and kind in LAYOUTS:
        dataset = _open_layout(kind, folder, split, limit)
    elif colon:
        near = did_you_mean(kind, LAYOUTS)
        raise UserError(f"dataset layout {kind!r} must be one of {', '.join(LAYOUTS)}; use {SPECIFICATIONS}{near}")
    else:
        dataset = _open_table(specification, split or "test", limit, columns, num_classes, ignored, first_ignored)
    if len(dataset.samples) == 0:
        raise UserError(f"dataset {specification!r} is empty; use {SPECIFICATIONS}")
    if dataset.num_classes != num_classes:
        raise UserError(
            f"dataset {specification!r} has {dataset.num_classes} classes, but the model has {num_classes}; give a "
            "model that was trained on these classes, or another data set"
        )
    return dataset
