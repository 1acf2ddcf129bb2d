"""Panoptic data sets: our scenes, and the layouts of COCO and ADE20K, JSON beside a folder of PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import UserError, brief, did_you_mean, is_int
from ...images import read_image
from ...measure.metrics.panoptic import CROWD, STEP, code, segment_map
from ...results.files import read_json
from ...scenes import CLASS_NAMES
from ...scenes._classes import NUM_STUFF
from ..annotations import check_entries, is_file_name, is_id, is_text
from ..datasets import MappedSamples, check_limit, open_scenes, read_map
from .options import MATCHES, SPECIFICATIONS

MAX_NAMED = 3  # of many mistakes in a file, those that an error message names
_LARGEST_ID = 256**3 - 1


@dataclass(frozen=True)
class PanopticDataset:
    """Images with true segments.

    Attributes:
        name: For the report.
        samples: Items with `name`, `image`, uint8 (H, W, 3), and `label`, the map of segments, int64 (H, W).
        class_names: Names of the classes, in the order of the model.
        things: Whether each class is one of things; the others are stuff.
        void: Which pixels do not count, for the report.
    """

    name: str
    samples: Sequence[dict]
    class_names: tuple[str, ...]
    things: tuple[bool, ...]
    void: str = "none"


def scene_segments(labels: Tensor, instances: Tensor) -> Tensor:
    """Maps of segments (..., H, W) of scenes: one segment per object, but one of all the pixels of a stuff class."""
    return labels * STEP + torch.where(labels < NUM_STUFF, 1, instances)


def _open_scenes(
    materials: str, split: str, limit: int | None, seed: int, size: tuple[int, int], labels: Sequence[str]
) -> PanopticDataset:
    segments = {"label": lambda item: scene_segments(item["labels"], item["instances"])}
    scenes = open_scenes(materials, split, limit, seed, size, **segments)
    if list(labels) != list(CLASS_NAMES):
        raise UserError(
            f"dataset 'scenes' has the {len(CLASS_NAMES)} classes {', '.join(CLASS_NAMES[:3])}, ..., but the model "
            f"has {len(labels)}: {', '.join(labels[:3])}, ...; give a model that was trained on scenes, or another "
            "data set"
        )
    things = tuple(index >= NUM_STUFF for index in range(len(CLASS_NAMES)))
    name = f"scenes of {materials} materials ({split}, seed {seed})"
    return PanopticDataset(name, scenes, tuple(CLASS_NAMES), things)


@dataclass(frozen=True)
class Layout:
    """Where a benchmark keeps its files below a folder; `{split}` and `{images}` stand for the split.

    Attributes:
        split: The one that is evaluated by default.
        index: JSON file; a folder of the same name without suffix holds the PNG files.
        images: Folder of the images.
        image_splits: Name of the images' folder by split, where it is another.
    """

    split: str
    index: str
    images: tuple[str, ...]
    image_splits: Mapping[str, str]


LAYOUTS = {
    "coco": Layout("val2017", "panoptic_{split}.json", ("{images}", "images/{images}"), {}),
    "ade20k": Layout(
        "val", "ade20k_panoptic_{split}.json", ("images/{images}",), {"val": "validation", "train": "training"}
    ),
}
_FOLDERS = ("", "annotations", "ADEChallengeData2016")


def _first(root: Path, names: Sequence[str], what: str, expected: str) -> Path:
    """The first of some files or folders that exists below a folder.

    Raises:
        ValueError: There is none.
    """
    places = [root / folder / name for folder in _FOLDERS for name in names]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(f"{root} has no {what} {names[0]}; expected {expected}")
    return found


def _named(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
    return "; ".join(problems[:MAX_NAMED]) + more


def _read_index(path: Path) -> dict:
    """A panoptic JSON file whose parts have the fields that are read.

    Raises:
        ValueError: It is no JSON, or lacks something.
    """
    index = read_json(path, "annotation file", "; unpack it again")
    fields = {
        "categories": {"id": is_int, "name": is_text, "isthing": (0, 1).__contains__},
        "images": {"id": is_id, "file_name": is_file_name},
        "annotations": {"image_id": is_id, "file_name": is_file_name, "segments_info": lambda value: True},
    }
    for part, needed in fields.items():
        entries = index.get(part) if isinstance(index, dict) else None
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{path} has no list of {part!r}; give a panoptic file, not one of instances or captions")
        check_entries(entries, part, needed, path)
    return index


def _check_segments(annotation: dict, categories: Mapping[Any, int]) -> str | None:
    """What is wrong with the segments of an image, or None."""
    segments, where = annotation["segments_info"], f"{annotation['file_name']}:"
    if not isinstance(segments, list) or not all(isinstance(s, dict) and "id" in s for s in segments):
        return f"{where} its segments_info is no list of segments with an id"
    ids = set()
    for segment in segments:
        number, category = segment["id"], segment.get("category_id")
        if not is_int(number) or not 1 <= number <= _LARGEST_ID:
            return f"{where} segment id {brief(number)} must be from 1 to {_LARGEST_ID}"
        if number in ids:
            return f"{where} segment {number} occurs twice"
        if not is_int(category) or category not in categories:
            return f"{where} segment {number} is of category {brief(category)}, which is not in 'categories'"
        ids.add(number)
    return None


def match_categories(categories: Sequence[dict], labels: Sequence[str], match: str, name: str) -> dict[Any, int]:
    """Class of the model for each category id of a data set.

    Args:
        categories: With `id` and `name`.
        labels: Names of the model's classes in their order.
        match: `"names"`, without regard to case, or `"order"`, that of the ids.
        name: Of the data set, for error messages.

    Raises:
        ValueError: Categories that are not those of the model, which are named, or two of one name.
    """
    if match not in MATCHES:
        near = did_you_mean(match, MATCHES)
        raise UserError(f"match={match!r} must be one of {', '.join(MATCHES)}; for example names{near}")
    if len({category["id"] for category in categories}) < len(categories):
        raise UserError(f"{name} has two categories of one id")
    if match == "order":
        if len(categories) != len(labels):
            raise UserError(
                f"{name} has {len(categories)} categories, but the model has {len(labels)} classes; give a model that "
                "was trained on these categories"
            )
        return {category["id"]: index for index, category in enumerate(sorted(categories, key=lambda c: c["id"]))}
    theirs, ours = (
        [" ".join(str(one).lower().replace("_", " ").split()) for one in names]
        for names in ([category["name"] for category in categories], labels)
    )
    advice = "give a model that was trained on these categories, or --match order to pair them in the order of ids"
    for side, names in ((name, theirs), ("the model", ours)):
        if twice := sorted({one for one in names if names.count(one) > 1}):
            raise UserError(f"{side} has two categories called {twice[0]!r}; {advice}")
    wrong = [f"{one!r} is not among the model's" for one in theirs if one not in ours]
    wrong += [f"the model's {one!r} is not in the data set" for one in ours if one not in theirs]
    if wrong:
        raise UserError(f"{name}: {len(wrong)} categories do not match the model: {_named(wrong)}; {advice}")
    return {category["id"]: ours.index(one) for category, one in zip(categories, theirs, strict=True)}


def read_segments(path: Path, annotation: dict, classes: Mapping[Any, int]) -> torch.Tensor:
    """Map of segments, int64 (H, W), from a PNG whose pixels hold R + 256 G + 256^2 B, the id of their segment.

    Args:
        path: PNG file.
        annotation: Its entry in the JSON file.
        classes: From category ids to classes.

    Raises:
        UnreadableError: The file cannot be read.
        ValueError: It is no such PNG, or its segments are not those of the entry.
    """
    pixels = read_map(path)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{path} must be an RGB image, but its pixels have shape {pixels.shape} and {pixels.dtype}")
    ids = torch.from_numpy(pixels.astype(np.int64) @ np.array([1, 256, 256**2]))
    codes = {}
    for number, segment in enumerate(annotation["segments_info"], start=1):
        codes[segment["id"]] = code(classes[segment["category_id"]], CROWD if segment.get("iscrowd") else number)
    present = set(ids.unique().tolist()) - {0}
    for missing, place, other in (
        (sorted(set(codes) - present), "in the JSON file", "has no pixel"),
        (sorted(present - set(codes)), "in the image", "is not in the JSON file"),
    ):
        if missing:
            count = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(f"{path}: segment {missing[0]}{count} {place} {other}")
    return segment_map(ids, codes)


def _open_layout(
    kind: str, folder: str, split: str | None, limit: int | None, labels: Sequence[str], match: str
) -> PanopticDataset:
    layout, root = LAYOUTS[kind], Path(folder)
    split = split or layout.split
    names = {"split": split, "images": layout.image_splits.get(split, split)}
    index_name, image_names = layout.index.format(**names), [name.format(**names) for name in layout.images]
    expected = f"{index_name}, {Path(index_name).stem}/NAME.png and {image_names[0]}/NAME.jpg"
    if not root.is_dir():
        raise UserError(f"dataset folder {folder!r} does not exist; expected {expected}")
    path = _first(root, [index_name], "file", expected)
    if not path.with_suffix("").is_dir():
        packed = f"; unpack {path.with_suffix('.zip')}" if path.with_suffix(".zip").is_file() else ""
        raise UserError(f"{path.parent} has no folder {path.stem}{packed}; expected {expected}")
    images = _first(root, image_names, "folder", expected)
    index = _read_index(path)
    classes = match_categories(index["categories"], labels, match, str(path))
    if problems := [said for one in index["annotations"] if (said := _check_segments(one, classes)) is not None]:
        raise UserError(f"{path} is wrong for {len(problems)} images: {_named(problems)}")
    pairs = _pair_files(index, path, images)

    def read(pair: tuple[Path, Path, dict]) -> dict:
        image, label, annotation = pair
        segments = read_segments(label, annotation, classes)
        return {"name": str(image), "image": read_image(image, upright=False), "label": segments}

    things = [False] * len(labels)
    for category in index["categories"]:
        things[classes[category["id"]]] = bool(category["isthing"])
    samples = MappedSamples(pairs, read, limit)
    return PanopticDataset(f"{kind}:{folder} ({split})", samples, tuple(labels), tuple(things), "0")


def _pair_files(index: dict, path: Path, images: Path) -> list[tuple[Path, Path, dict]]:
    """Image file, PNG file and entry of every annotation, by the name of the PNG file.

    Raises:
        ValueError: Files, images or annotations are missing, or an image has two; the first ones are named.
    """
    names = {image["id"]: image["file_name"] for image in index["images"]}
    annotated = [annotation["image_id"] for annotation in index["annotations"]]
    known = set(annotated)
    problems = [f"no image has the id {one!r}" for one in annotated if one not in names]
    problems += [f"image {name} has no annotation" for one, name in names.items() if one not in known]
    if len(known) < len(annotated):
        problems += [f"image {names[one]} has two annotations" for one in names if annotated.count(one) > 1]
    if problems:
        raise UserError(f"{path}: {_named(problems)}")
    entries = sorted(index["annotations"], key=lambda annotation: annotation["file_name"])
    pairs = [(images / names[e["image_id"]], path.with_suffix("") / e["file_name"], e) for e in entries]
    for number, what in ((0, "images"), (1, "PNG files of segments")):
        missing = [str(pair[number]) for pair in pairs if not pair[number].is_file()]
        if missing:
            raise UserError(f"{len(missing)} {what} that {path} names are missing: {_named(missing)}")
    return pairs


def open_panoptic_dataset(
    specification: str = "scenes",
    *,
    labels: Sequence[str],
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (192, 192),
    match: str = "names",
) -> PanopticDataset:
    """Open a panoptic data set by name.

    - `scenes`: rendered rooms of typical materials, held out from training, 19 classes; `scenes:any`: of any colour.
      Every object is a segment, however small; walls and other surfaces are one segment of each class.
    - `coco:DIR`: panoptic_SPLIT.json with its folder of PNG files, also below annotations/, and images in SPLIT/.
    - `ade20k:DIR`: ade20k_panoptic_SPLIT.json with its folder of PNG files, and images/validation/, as ADE20K's
      panoptic labels are prepared for Mask2Former.

    Args:
        specification: One of the above.
        labels: Names of the model's classes, which must be those of the data set.
        split: None means that on which the benchmark is scored, and test for `scenes`.
        limit: Number of images at most; None means all (`DEFAULT_SCENES` scenes).
        seed: Of the scenes.
        size: Of the scenes in pixels, (height, width).
        match: How categories of a file are paired with the model's classes, see `match_categories`.

    Raises:
        ValueError: Unknown name, missing or broken files, or other classes.
    """
    check_limit(limit)
    kind, colon, folder = specification.partition(":")
    if kind == "scenes":
        return _open_scenes(folder or "typical", split or "test", limit, seed, size, labels)
    if not colon or kind not in LAYOUTS:
        raise UserError(
            f"dataset {specification!r} is not known; use {SPECIFICATIONS}{did_you_mean(kind, ('scenes', *LAYOUTS))}"
        )
    return _open_layout(kind, folder, split, limit, labels, match)
