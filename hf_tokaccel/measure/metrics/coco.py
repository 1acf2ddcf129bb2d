"""Average precision as COCO defines it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from ...checks import UserError


def load_coco_tools() -> ModuleType:
    """`pycocotools.mask`.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import pycocotools.mask
    except ImportError as error:
        raise UserError("average precision needs pycocotools: pip install 'hf_tokaccel[evaluation]'") from error
    return pycocotools.mask


KINDS = {"box": "bbox", "mask": "segm"}
# Places in COCOeval's summary.
STATISTICS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar100": 8}
NAN = float("nan")


@dataclass(frozen=True)
class ImageRecord:
    """Truth and detections of one image.

    Attributes:
        size: (height, width) in pixels.
        truth: Annotations as `InstanceDataset` has them.
        found: By kind, `"box"` or `"mask"`: detections of `category_id`, `score`, and `bbox` (x, y, width, height) or
            `segmentation` as a run-length encoding.
    """

    size: tuple[int, int]
    truth: list[dict]
    found: dict[str, list[dict]]


def average_precision(
    records: Sequence[ImageRecord], categories: Mapping[int, str], kind: str = "mask"
) -> tuple[dict[str, float], dict[str, float | None]]:
    """AP over IoU 0.5 to 0.95 with its companions, in [0, 1], and AP of each category, None where it has no object.

    What has no object to find is NaN.

    Args:
        records: Of all images in the order of the data set, which decides between equal scores.
        categories: Names by id.
        kind: `"box"` or `"mask"`.
    """
    load_coco_tools()
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # It prints what it does.
        evaluation = COCOeval(_truth(records, categories), _found(records, categories, kind), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 is its sign for nothing to find.
    statistics = {name: _valid(evaluation.stats[place].item()) for name, place in STATISTICS.items()}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoUs, recalls, categories
    classes = {}
    for i, key in enumerate(evaluation.params.catIds):
        values = precision[:, :, i]
        values = values[values > -1]
        classes[categories[key]] = values.mean().item() if values.size else None
    return statistics, classes


def _valid(value: float) -> float:
    return NAN if value < 0 else value


def _index(records: Sequence[ImageRecord], categories: Mapping[int, str], annotations: list[dict]):
    from pycocotools.coco import COCO

    images = [{"id": i, "height": r.size[0], "width": r.size[1]} for i, r in enumerate(records)]
    named = [{"id": key, "name": name} for key, name in categories.items()]
    # Copies, because the evaluation writes into them; numbered from 1, because it takes 0 for no match.
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    index = COCO()
    index.dataset = {"images": images, "categories": named, "annotations": numbered}
    index.createIndex()
    return index


def _truth(records: Sequence[ImageRecord], categories: Mapping[int, str]):
    return _index(records, categories, [a | {"image_id": i} for i, r in enumerate(records) for a in r.truth])


def _found(records: Sequence[ImageRecord], categories: Mapping[int, str], kind: str):
    tools, found = load_coco_tools(), []
    for i, record in enumerate(records):
        for detection in record.found[kind]:
            if kind == "box":
                area = detection["bbox"][2] * detection["bbox"][3]
            else:
                area = float(tools.area(detection["segmentation"]))
            found.append(detection | {"image_id": i, "area": area, "iscrowd": 0})
    return _index(records, categories, found)
