"""Instance data sets: files as COCO writes them, each annotation checked, and our scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import UserError, brief, did_you_mean, is_int, is_number
from ...images import read_image
from ...measure.metrics.coco import load_coco_tools
from ...results.files import read_json
from ...scenes import CLASS_NAMES
from ...scenes._classes import NUM_STUFF
from ..annotations import LARGEST_SIDE, check_entries, is_file_name, is_id, is_side, is_text
from ..datasets import MappedSamples, check_limit, open_scenes
from .options import SPECIFICATIONS

MARGIN = 4  # image sides that a coordinate may be away from the first pixel
LONGEST_OUTLINE = 5_000_000  # pixels; pycocotools takes 40 bytes for each
MAX_NAMED = 5  # wrong entries that an error message names
# Released checkpoints name six of COCO's classes as Pascal VOC does.
VOC_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


@dataclass(frozen=True)
class InstanceDataset:
    """Images with boxes, and masks if it has them.

    Attributes:
        name: For the report.
        samples: Items with `name`, `image`, uint8 (H, W, 3), and `annotations`, see `Annotations`.
        categories: Names by category id, in order of the ids.
        has_masks: Whether every annotation has a mask.
    """

    name: str
    samples: Sequence[dict]
    categories: dict[int, str]
    has_masks: bool = True


def encode_mask(mask: np.ndarray | Tensor) -> dict:
    """Run-length encoding of a mask (H, W)."""
    return load_coco_tools().encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8))


def decode_mask(rle: dict) -> np.ndarray:
    """Mask, bool (H, W)."""
    return load_coco_tools().decode(rle).astype(bool)


def _annotation(category: int, box: Sequence[float], mask: dict | None, area: float, crowd: bool) -> dict:
    """Entry of `annotations`: box as (x, y, width, height) in pixels, and mask as a run-length encoding or None."""
    return {"category_id": category, "bbox": list(box), "segmentation": mask, "area": area, "iscrowd": int(crowd)}


def _objects(labels: Tensor, instances: Tensor) -> list[dict]:
    """Annotations of all objects that are seen in maps (H, W) of classes and of object numbers, 0 for surfaces."""
    tools, found = load_coco_tools(), []
    for number in instances.unique().tolist():
        if number == 0:
            continue
        mask = instances == number
        rle = encode_mask(mask)
        category = int(labels[mask][0])
        found.append(_annotation(category, tools.toBbox(rle).tolist(), rle, float(tools.area(rle)), False))
    return found


def string_counts(text: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed string: groups of 5 bits, low ones first, as differences after the third.

    Raises:
        ValueError: It is no such string.
    """
    text = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    counts, value, shift = [], 0, 0
    for byte in text:
        group = byte - 48
        if not 0 <= group < 64:
            raise UserError(f"the character {chr(byte)!r} is not of a run-length encoding")
        value |= (group & 31) << shift
        shift += 5
        if shift > 60:
            raise UserError("the string has a number of more than 60 bits")
        if not group & 32:
            value -= (1 << shift) if group & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise UserError("the string ends in the middle of a number")
    return counts


def check_mask(segmentation: Any, size: tuple[int, int]) -> dict:
    """Run-length encoding of a mask as COCO stores it: polygons, run lengths, or a compressed string.

    Args:
        segmentation: Polygons as lists of x and y, or a dict of `size` and `counts`.
        size: Of the image in pixels, (height, width).

    Raises:
        ValueError: What is wrong with it. pycocotools would read beyond its memory, or count wrong areas.
    """
    tools = load_coco_tools()
    if isinstance(segmentation, list):
        if not segmentation:
            raise UserError("it has no polygon")
        for polygon in segmentation:
            whole = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not whole or not all(map(is_number, polygon)):
                raise UserError(f"a polygon must be at least 6 numbers x1, y1, x2, y2, ..., not {_brief(polygon)}")
        _check_outlines(segmentation, size)
        return tools.merge(tools.frPyObjects(segmentation, *size))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise UserError(f"it must be polygons, or have size and counts, not {_brief(segmentation)}")
    if segmentation["size"] not in (list(size), tuple(size)):
        raise UserError(
            f"its run lengths are of {_brief(segmentation['size'])}, but its image has {list(size)} pixels"
        )
    counts = segmentation["counts"]
    if not isinstance(counts, (str, bytes, list)):
        raise UserError(f"counts must be a list or a string, not {_brief(counts)}")
    counts = counts if isinstance(counts, list) else string_counts(counts)
    if not all(is_int(count) and count >= 0 for count in counts):
        raise UserError("a run length is not a whole number from 0")
    if sum(counts) != size[0] * size[1]:
        raise UserError(f"its run lengths cover {sum(counts)} pixels, but its image has {size[0] * size[1]}")
    return tools.frPyObjects({"size": list(size), "counts": counts}, *size)


def _is_place(value: Any) -> bool:
    """Whether it is a number that a coordinate in pixels may be."""
    return is_number(value) and abs(value) <= MARGIN * LARGEST_SIDE


def _check_outlines(polygons: list[list[float]], size: tuple[int, int]) -> None:
    """Raises ValueError where pycocotools would walk along edges that leave its memory."""
    length = 0.0
    for polygon in polygons:
        corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        # A pixel or two outside is common; edges that cross the image several times over are a mistake.
        if (np.abs(corners) > MARGIN * max(size)).any():
            worst = float(corners.flat[np.abs(corners).argmax()])
            raise UserError(f"a polygon has the coordinate {worst:g}, far outside of its image of {list(size)} pixels")
        length += np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
    if length > LONGEST_OUTLINE:
        raise UserError(f"its polygons are {length:.0f} pixels long, and {LONGEST_OUTLINE} are the most")


_brief = partial(brief, length=60)


def _check_annotation(annotation: Any, images: Mapping, categories: Mapping) -> dict:
    """An entry of a COCO file as `_annotation` gives it; ValueError says what is wrong with it."""
    for key, known, what in (("image_id", images, "image"), ("category_id", categories, "category")):
        if annotation[key] not in known:
            raise UserError(f"{key} {annotation[key]!r} is no {what} of the file")
    image = images[annotation["image_id"]]
    size = image["height"], image["width"]
    mask = annotation.get("segmentation")
    mask = None if mask in (None, []) else check_mask(mask, size)
    box = annotation.get("bbox")
    if box is None and mask is None:
        raise UserError("it has neither bbox nor segmentation")
    if box is None:
        box = load_coco_tools().toBbox(mask).tolist()
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_place, box)) or min(box[2:]) < 0:
        raise UserError(f"bbox must be [x, y, width, height] in pixels, not {_brief(box)}")
    area = annotation.get("area")
    if area is None:
        area = box[2] * box[3] if mask is None else float(load_coco_tools().area(mask))
    elif not is_number(area) or area < 0:
        raise UserError(f"area must be a number from 0, not {_brief(area)}")
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"iscrowd must be 0 or 1, not {_brief(crowd)}")
    return _annotation(annotation["category_id"], box, mask, area, bool(crowd))


def _by_id(content: dict, key: str, needed: Mapping[str, Callable[[Any], bool]], path: Path) -> dict:
    """Entries of a list of a COCO file by their ids."""
    check_entries(content[key], key, needed, path)
    found: dict = {}
    for entry in content[key]:
        if entry["id"] in found:
            raise UserError(f"{path}: {key} have the id {entry['id']} twice")
        found[entry["id"]] = entry
    if not found:
        raise UserError(f"{path} has no {key}")
    return found


def read_coco(path: Path, folder: Path, limit: int | None) -> tuple[list[dict], dict[int, str], bool]:
    """Images of a COCO file with path and annotations, names of its categories by id, and whether all have masks.

    Raises:
        ValueError: It is no such file, or has wrong entries or missing images; the first few are named.
    """
    content = read_json(path, "annotation file")
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise UserError(f"annotation file {path} must have the lists {', '.join(lists)}, as COCO's instance files do")
    needed = {"id": is_id, "file_name": is_file_name, "height": is_side, "width": is_side}
    images = _by_id(content, "images", needed, path)
    categories = _by_id(content, "categories", {"id": is_int, "name": is_text}, path)
    check_entries(content["annotations"], "annotations", {"image_id": is_id, "category_id": is_int}, path)
    missing = [image["file_name"] for image in images.values() if not (folder / image["file_name"]).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(images)} images of {path.name}: "
            f"{', '.join(missing[:MAX_NAMED])}; give the folder that has them with --image-folder"
        )
    found: dict = {key: [] for key in images}
    wrong = []
    for annotation in content["annotations"]:
        try:
            checked = _check_annotation(annotation, images, categories)
            found[annotation["image_id"]].append(checked)
        except UserError as error:
            wrong.append(f"annotation {brief(annotation.get('id'), 60)}: {error}")
    if wrong:
        more = f"; and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        raise UserError(f"{path} has {len(wrong)} wrong annotations: {'; '.join(wrong[:MAX_NAMED])}{more}; repair it")
    ordered = [
        {"path": folder / image["file_name"], "size": (image["height"], image["width"]), "annotations": found[key]}
        for key, image in images.items()
    ][:limit]
    has_masks = all(entry["segmentation"] is not None for image in ordered for entry in image["annotations"])
    return ordered, {key: categories[key]["name"] for key in sorted(categories)}, has_masks


def _find_coco(given: Path, split: str, folder: str | None) -> tuple[Path, Path]:
    """Annotation file and image folder of what stands after `coco:`."""
    if given.is_file():
        return given, Path(folder) if folder else given.parent
    layouts = (
        (given / "annotations" / f"instances_{split}.json", given / split),
        (given / split / "_annotations.coco.json", given / split),
    )
    for path, images in layouts:
        if path.is_file():
            return path, Path(folder) if folder else images
    raise UserError(
        f"{str(given)!r} is neither a COCO file nor a folder with annotations/instances_{split}.json or "
        f"{split}/_annotations.coco.json; choose another split with --split, or give the file"
    )


def _open_coco(given: str, split: str | None, limit: int | None, folder: str | None) -> InstanceDataset:
    path, images = _find_coco(Path(given), split or "val2017", folder)
    ordered, categories, has_masks = read_coco(path, images, limit)

    def read(entry: dict) -> dict:
        image, name = read_image(entry["path"], upright=False), str(entry["path"])
        if image.shape[:2] != entry["size"]:
            image = read_image(entry["path"])  # Labelled as programs show it, turned as EXIF says.
        if image.shape[:2] != entry["size"]:
            height, width = entry["size"]
            raise UserError(
                f"image {name} has {image.shape[0]}x{image.shape[1]} pixels, but {height}x{width} in {path.name}"
            )
        return {"name": name, "image": image, "annotations": entry["annotations"]}

    return InstanceDataset(f"coco:{path}", MappedSamples(ordered, read), categories, has_masks)


def _open_scenes(materials: str, split: str, limit: int | None, seed: int, size: tuple[int, int]) -> InstanceDataset:
    objects = {"annotations": lambda item: _objects(item["labels"], item["instances"])}
    scenes = open_scenes(materials, split, limit, seed, size, **objects)
    names = dict(enumerate(CLASS_NAMES[NUM_STUFF:], start=NUM_STUFF))
    return InstanceDataset(f"scenes of {materials} materials ({split}, seed {seed})", scenes, names)


def open_instance_dataset(
    specification: str = "scenes",
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (192, 192),
    image_folder: str | None = None,
) -> InstanceDataset:
    """Open an instance data set by name.

    - `scenes`: rendered rooms of typical materials, held out from training; `scenes:any`: of any colour. All
      objects count, however small; walls and other surfaces do not.
    - `coco:DIR`: annotations/instances_SPLIT.json and SPLIT/ below one folder, or SPLIT/_annotations.coco.json beside
      the images; `coco:FILE.json`: any such file.

    Args:
        specification: One of the above.
        split: None means val2017, and test for scenes.
        limit: Number of images at most; None means all (`DEFAULT_SCENES` scenes).
        seed: Of the scenes.
        size: Of the scenes in pixels, (height, width).
        image_folder: Where the images of a COCO file are; None means where its layout has them, or beside it.

    Raises:
        ValueError: Unknown name, missing files, wrong entries.
    """
    check_limit(limit)
    kind, colon, rest = specification.partition(":")
    if kind == "scenes":
        return _open_scenes(rest or "typical", split or "test", limit, seed, size)
    if kind == "coco" and colon:
        return _open_coco(rest, split, limit, image_folder)
    raise UserError(
        f"dataset {specification!r} is not known; use {SPECIFICATIONS}{did_you_mean(kind, ('scenes', 'coco'))}"
    )


def match_categories(id2label: Mapping[int, str], categories: Mapping[int, str]) -> dict[int, int]:
    """Category id of each of a model's labels that has one: by name, or by number where the names say nothing.

    Args:
        id2label: Of the model; others than the categories may be among them, such as surfaces or `N/A`.
        categories: Names by id.

    Raises:
        ValueError: Categories that the model does not know.
    """
    names = {_plain(name): key for key, name in categories.items()}
    matched = {label: names[_plain(name)] for label, name in id2label.items() if _plain(name) in names}
    if set(matched.values()) == set(categories):
        return matched
    if not all(name.upper() == f"LABEL_{label}" for label, name in id2label.items()):
        unknown = [name for key, name in categories.items() if key not in matched.values()]
        raise UserError(
            f"the model has no label for {len(unknown)} of the {len(categories)} categories of the data set: "
            f"{', '.join(unknown[:MAX_NAMED])}; give a model that was trained on these, or set its id2label"
        )
    if len(id2label) == len(categories):
        return dict(enumerate(categories))
    if set(categories) <= set(id2label):
        return {key: key for key in categories}
    raise UserError(
        f"the model has {len(id2label)} labels without names, which fit neither the number nor the ids of the "
        f"{len(categories)} categories of the data set; set the id2label of its configuration"
    )


def _plain(name: str) -> str:
    name = name.strip().lower()
    return VOC_NAMES.get(name, name).replace("_", " ")


def annotation_masks(annotations: Sequence[dict]) -> Tensor:
    """Masks of annotations, bool (N, H, W)."""
    return torch.stack([torch.from_numpy(decode_mask(entry["segmentation"])) for entry in annotations])
