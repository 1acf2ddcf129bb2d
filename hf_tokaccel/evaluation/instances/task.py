"""Object detection and instance segmentation as the evaluation loop sees them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)

from ...checkpoint import ModelKind, SomeTypes
from ...checks import UserError
from ...hosts.track import last_steps, observe_clusters
from ...measure.metrics.coco import NAN, ImageRecord, average_precision
from ...measure.variant import Variant
from ..pictures import Panel
from ..task import Summary, Task
from .data import InstanceDataset, annotation_masks, encode_mask
from .pictures import Instances, count_matches, draw_instances

_ELSEWHERE = ("detr", "videomt")  # Transformers gives masks of DETR that share out the pixels; VidEoMT has videos.
SHOWN = 0.5  # least score in pictures
INSTANCE_MODELS = ModelKind(
    autos={
        AutoModelForUniversalSegmentation: SomeTypes(
            MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, lambda name: name not in _ELSEWHERE
        ),
        AutoModelForInstanceSegmentation: MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING,
        AutoModelForObjectDetection: MODEL_FOR_OBJECT_DETECTION_MAPPING,
    },
    lacks="finds no objects",
    trained_for="object detection or instance segmentation",
    example="facebook/mask2former-swin-tiny-coco-instance",
)


@dataclass(frozen=True)
class InstanceProtocol:
    """How predictions reach the score.

    Attributes:
        categories: Names by category id.
        labels: Category id of each of the model's labels; the other labels do not count.
        threshold: Least score of a detection.
    """

    categories: dict[int, str]
    labels: dict[int, int]
    threshold: float = 0.0

    def to_dict(self) -> dict:
        return {
            "metric": "COCO's average precision over IoU 0.5 to 0.95, by pycocotools",
            "prediction": "post-processing of the image processor, at the size of the image",
            "threshold": self.threshold,
            "num_categories": len(self.categories),
        }


def corners_of(masks: Tensor) -> Tensor:
    """Boxes (N, 4) of masks (N, H, W), none of them empty: x1, y1, x2, y2 around whole pixels."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box[:] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes


def _queries(outputs: Any) -> list[SimpleNamespace]:
    """The outputs of one image as one of each query."""
    names = ("class_queries_logits", "masks_queries_logits")
    parts = zip(*(getattr(outputs, name).split(1, dim=1) for name in names), strict=True)
    return [SimpleNamespace(**dict(zip(names, part, strict=True))) for part in parts]


class InstanceTask(Task):
    """Object detection or instance segmentation for `evaluate_variants`.

    Args:
        model: Dense model; it has masks if it is one of `AutoModelForUniversalSegmentation` or of
            `AutoModelForInstanceSegmentation`.
        processor: Its image processor, whose post-processing makes the predictions.
        protocol: Categories and labels.

    Raises:
        ValueError: The image processor has no such post-processing.
    """

    label = "annotations"
    no_label_hint = "no image has an object to find"
    num_sums = 1
    # The published setting on COCO instances is 8x8 clusters of windows of 12x12 after 7 of a stage's 18 blocks.
    shares = ((10 / 24, 0.7), (8 / 24, 0.5))
    variations = ({"expansion": "soft"}, {"expansion": "nearest"}, {"expansion": "delta"})

    def __init__(self, model: torch.nn.Module, processor, protocol: InstanceProtocol):
        self.processor, self.protocol = processor, protocol
        self.has_masks = "ObjectDetection" not in type(model).__name__
        self.name = "instance-segmentation" if self.has_masks else "object-detection"
        self.kinds = ("mask", "box") if self.has_masks else ("box",)
        needed = "post_process_instance_segmentation" if self.has_masks else "post_process_object_detection"
        if not hasattr(processor, needed):
            raise UserError(
                f"the image processor {type(processor).__name__} has no {needed}; give a model whose processor has, "
                f"such as {INSTANCE_MODELS.example}"
            )
        # OneFormer's own processing shares out the pixels; its paper evaluates as Mask2Former's does.
        oneformer = "OneFormer" in type(model).__name__
        self.segmenting = Mask2FormerImageProcessorPil() if oneformer else processor

    def check_dataset(self, dataset: InstanceDataset) -> None:
        """Raises ValueError where masks are to be scored that the data set does not have."""
        if self.has_masks and not dataset.has_masks:
            raise UserError(
                f"dataset {dataset.name} has annotations without a segmentation, which mask AP needs; give a data set "
                "with masks, or a detection model"
            )

    def encode(self, sample: dict) -> dict:
        """Model input, `size` (height, width) of the image, and `annotations` if known."""
        options = {"return_tensors": "pt", "input_data_format": "channels_last"}
        if hasattr(self.processor, "do_pad") and not hasattr(self.processor, "unpad_image"):
            options["do_pad"] = False  # Images of one size make a batch; padding would need a mask.
        encoded = self.processor(images=sample["image"], **options)
        known = {"annotations": sample["annotations"]} if "annotations" in sample else {}
        return {"pixel_values": encoded["pixel_values"][0], "size": tuple(sample["image"].shape[:2])} | known

    def decode(self, outputs: Any, items: Sequence[dict]) -> list[dict[str, Instances]]:
        """Instances of each image by kind, at its size."""
        tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        decoded = []
        for i, item in enumerate(items):
            one = SimpleNamespace(**{name: value[i : i + 1].float() for name, value in tensors.items()})
            found = {}
            if self.has_masks:
                found["mask"] = self._masks(one, item["size"])
            if hasattr(one, "pred_boxes") and hasattr(self.processor, "post_process_object_detection"):
                found["box"] = self._boxes(one, item["size"])
            else:
                found["box"] = found["mask"]
            decoded.append(found)
        return decoded

    def _boxes(self, outputs: Any, size: tuple[int, int]) -> Instances:
        sizes = torch.tensor([size], device=outputs.pred_boxes.device)
        process = self.processor.post_process_object_detection
        (found,) = process(outputs, threshold=self.protocol.threshold, target_sizes=sizes)
        return self._select(*(found[name].cpu() for name in ("labels", "scores", "boxes")))

    def _masks(self, outputs: Any, size: tuple[int, int]) -> Instances:
        process = self.segmenting.post_process_instance_segmentation
        options, parts = {"threshold": self.protocol.threshold, "target_sizes": [size]}, [outputs]
        # Where masks may overlap, a single map would cut the lower of them.
        if "return_binary_maps" in inspect.signature(process).parameters:
            options["return_binary_maps"] = True
        else:
            parts = _queries(outputs)
        segments, found = [], [torch.zeros(0, *size, dtype=torch.bool)]
        for part in parts:
            (one,) = process(part, **options)
            maps = one["segmentation"].cpu()
            segments += one["segments_info"]
            if one["segments_info"]:
                single = maps.ndim == 2
                found.append(torch.stack([maps == s["id"] for s in one["segments_info"]]) if single else maps.bool())
        masks = torch.cat(found)
        labels = torch.tensor([segment["label_id"] for segment in segments], dtype=torch.long)
        scores = torch.tensor([segment["score"] for segment in segments])
        seen = masks.flatten(1).any(1) if len(masks) else torch.zeros(0, dtype=torch.bool)
        labels, scores, masks = labels[seen], scores[seen], masks[seen]
        return self._select(labels, scores, corners_of(masks), masks)

    def _select(self, labels: Tensor, scores: Tensor, boxes: Tensor, masks: Tensor | None = None) -> Instances:
        """What is of a category of the data set."""
        counted = torch.tensor([label in self.protocol.labels for label in labels.tolist()], dtype=torch.bool)
        ids = torch.tensor([self.protocol.labels[label] for label in labels[counted].tolist()], dtype=torch.long)
        return Instances(ids, scores[counted], boxes[counted], None if masks is None else masks[counted])

    def score(self, prediction: dict[str, Instances], item: dict) -> Tensor:
        """Whether there is an object to find; `keep` has the predictions."""
        return torch.tensor([float(any(not entry["iscrowd"] for entry in item["annotations"]))])

    def keep(self, prediction: dict[str, Instances], item: dict) -> ImageRecord:
        found = {}
        for kind in self.kinds:
            instances = prediction[kind]
            x1, y1, x2, y2 = instances.boxes.double().unbind(-1)
            shapes = torch.stack([x1, y1, x2 - x1, y2 - y1], -1).tolist()
            if kind == "mask":
                shapes = [encode_mask(mask) for mask in instances.masks]
            name = {"mask": "segmentation", "box": "bbox"}[kind]
            lines = zip(instances.categories.tolist(), instances.scores.tolist(), shapes, strict=True)
            found[kind] = [{"category_id": c, "score": s, name: shape} for c, s, shape in lines]
        return ImageRecord(item["size"], item["annotations"], found)

    def summarise(self, sums: Tensor, kept: Sequence[Mapping[int, Any]] = ()) -> list[Summary]:
        summaries: list[Summary] = []
        for records in kept:
            metrics: dict[str, float] = {}
            classes: dict[str, float | None] = {}
            for kind in reversed(self.kinds):
                values, classes = average_precision(list(records.values()), self.protocol.categories, kind)
                metrics |= {f"{kind}_{name}": value for name, value in values.items()}
            name = f"{self.kinds[0]}_ap"
            dense = (summaries[0].metrics if summaries else metrics)[name]
            metrics["kept"] = metrics[name] / dense if dense else NAN
            summaries.append(Summary(metrics, classes=classes))
        return summaries

    def _shown(self, instances: Instances) -> Instances:
        return instances.take(instances.scores >= SHOWN)

    @torch.inference_mode()
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants on a sample; instead of maps it has `Instances`."""
        item, kind, found = self.encode(sample), self.kinds[0], []
        for variant in (dense, accelerated):
            pixel_values = item["pixel_values"][None].to(variant.device)
            with observe_clusters() as seen:
                outputs = self.run(variant.with_eager(), pixel_values)
            found.append(self._shown(self.decode(outputs, [item])[0][kind]))
        return Panel(sample["image"], *found, last_steps(seen)[0].image_labels()[0].cpu(), self._truth(sample))

    def _truth(self, sample: dict) -> Instances | None:
        if "annotations" not in sample:
            return None
        entries = [entry for entry in sample["annotations"] if not entry["iscrowd"]]
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        size = sample["image"].shape[:2]
        masks = None
        if self.has_masks:
            masks = annotation_masks(entries) if entries else torch.zeros(0, *size, dtype=torch.bool)
        categories = torch.tensor([entry["category_id"] for entry in entries], dtype=torch.long)
        return Instances(categories, torch.ones(len(entries)), boxes, masks)

    def draw_samples(self, panels: Sequence[Panel], path: Path, heading: str) -> None:
        draw_instances(panels, path, self.protocol.categories, heading=heading)

    def draw_photographs(self, panels: Mapping[str, Panel], path: Path, heading: str) -> dict[str, str]:
        """Draws, and says by name how many of the dense model's objects the accelerated one finds too."""
        draw_instances(list(panels.values()), path, self.protocol.categories, heading=heading)
        said = {}
        for name, panel in panels.items():
            both, first, second = count_matches(panel.dense, panel.accelerated)
            said[name] = f"{both} of the {first} objects of the dense model are among {second} of the accelerated one"
        return said
