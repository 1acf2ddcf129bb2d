"""Panoptic segmentation as the evaluation loop sees it: models, segments, metrics, figures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import AutoModelForUniversalSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

from ...checkpoint import ModelKind, SomeTypes
from ...checks import UserError
from ...measure.metrics.bootstrap import bootstrap, interval
from ...measure.metrics.panoptic import METRICS, code, image_sums, metrics_from_sums, num_sums, segment_map
from ..pictures import Panel
from ..queries import QueryTask, at_input_size, is_whole
from ..task import Summary
from .pictures import draw_panoptic

_PARTS = [f"{name}{part}" for part in ("", "_things", "_stuff") for name in METRICS]
_ELSEWHERE = ("detr", "videomt")  # These predict something else than one class and one mask per query and image.
PANOPTIC_MODELS = ModelKind(
    autos={
        AutoModelForUniversalSegmentation: SomeTypes(
            MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, lambda name: name not in _ELSEWHERE
        )
    },
    lacks="does no panoptic segmentation of images by queries with masks",
    trained_for="panoptic segmentation",
    example="facebook/mask2former-swin-tiny-coco-panoptic",
)


@dataclass(frozen=True)
class PanopticProtocol:
    """How predictions become segments, and segments the score.

    Attributes:
        class_names: Names of the classes.
        things: Whether each class is one of things; segments of the others are fused.
        threshold: Score from which a query counts; None takes the image processor's.
        overlap: Share of its mask that a segment must keep where masks overlap; None takes the image processor's.
        match: How categories were paired with the model's classes.
        void: Which stored segments do not count, in words.
        resamples: Draws of the bootstrap.
        seed: Of those draws.
    """

    class_names: tuple[str, ...]
    things: tuple[bool, ...]
    threshold: float | None = None
    overlap: float | None = None
    match: str = "names"
    void: str = "none"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        for name in ("threshold", "overlap"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise UserError(f"{name}={value} must be at least 0 and below 1, for example 0.8")

    def to_dict(self) -> dict:
        return {
            "num_classes": len(self.class_names),
            "num_things": sum(self.things),
            "matched_by": self.match,
            "void": self.void,
            "threshold": self.threshold,
            "overlap": self.overlap,
            "prediction": "masks without padding, post_process_panoptic_segmentation at the size of the label",
            "interval": f"95 %, bootstrap over images, {self.resamples} resamples, seed {self.seed}",
        }


def class_names(config) -> tuple[str, ...]:
    """Names of the model's classes in their order."""
    return tuple(config.id2label[i] for i in range(config.num_labels))


def things_without_data(labels: Sequence[str]) -> tuple[bool, ...]:
    """Which classes are things where no data set says so: of our scenes that is known, else all count as things."""
    from ...scenes import CLASS_NAMES
    from ...scenes._classes import NUM_STUFF

    stuff = CLASS_NAMES[:NUM_STUFF] if tuple(labels) == tuple(CLASS_NAMES) else ()
    return tuple(label not in stuff for label in labels)


class PanopticTask(QueryTask):
    """Panoptic segmentation for `evaluate_variants`.

    Args:
        processor: Image processor of the model.
        protocol: What is done with predictions.

    Raises:
        ValueError: The image processor makes no panoptic segmentation.
    """

    name = "panoptic-segmentation"
    label = "label"
    truth = "segments"
    no_label_hint = "check the JSON file and whether the PNG files are those of segments"

    def __init__(self, processor, protocol: PanopticProtocol):
        self.processor = processor
        self.num_sums = num_sums(len(protocol.class_names))
        if not hasattr(processor, "post_process_panoptic_segmentation"):
            raise UserError(
                f"{type(processor).__name__} makes no panoptic segmentation: give a model whose "
                "preprocessor_config.json names that of Mask2Former, MaskFormer, OneFormer or EoMT"
            )
        known = inspect.signature(processor.post_process_panoptic_segmentation).parameters
        given = {"threshold": protocol.threshold, "overlap_mask_area_threshold": protocol.overlap}
        self.options = {name: known[name].default if value is None else value for name, value in given.items()}
        self.protocol = replace(protocol, **dict(zip(("threshold", "overlap"), self.options.values(), strict=True)))
        # We fuse stuff: after a second mask of a fused class, Transformers gives out ids that are already taken.
        self.options |= {"label_ids_to_fuse": set()} if "label_ids_to_fuse" in known else {}

    def decode(self, outputs: tuple[Tensor, Tensor], items: Sequence[dict]) -> list[Tensor]:
        """Maps of segments at the size of the image, which is that of the label."""
        return [
            self._segments(classes[None].float(), masks[None].float(), item)
            for classes, masks, item in zip(*outputs, items, strict=True)
        ]

    def _segments(self, classes: Tensor, masks: Tensor, item: dict) -> Tensor:
        # Image processors stretch masks over the image as if there were no padding.
        masks = masks if is_whole(item) else at_input_size(masks, item)
        outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
        (found,) = self.processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[item["size"]], **self.options
        )
        codes = {
            segment["id"]: code(segment["label_id"], number if self.protocol.things[segment["label_id"]] else 1)
            for number, segment in enumerate(found["segments_info"], start=1)
        }
        return segment_map(found["segmentation"], codes)

    def score(self, prediction: Tensor, item: dict) -> Tensor:
        return image_sums(prediction, item["label"], len(self.protocol.class_names))

    def summarise(self, sums: Tensor, kept: Sequence[Mapping[int, Any]] = ()) -> list[Summary]:
        counted, things = sums[:, sums[0, :, -1] > 0], self.protocol.things
        totals = metrics_from_sums(counted.sum(1), things)
        drawn = metrics_from_sums(bootstrap(counted, self.protocol.resamples, self.protocol.seed), things)["pq"]
        summaries = []
        for i in range(len(sums)):
            metrics = {name: totals[name][i].item() for name in _PARTS}
            metrics["kept"] = (totals["pq"][i] / totals["pq"][0]).item()
            # The dense row is exact here: it is what the others are compared with.
            intervals = {"pq": interval(drawn[i])} | ({"kept": interval(drawn[i] / drawn[0])} if i else {})
            per_class = zip(self.protocol.class_names, totals["pq_of"][i].tolist(), strict=True)
            classes = {name: None if value != value else value for name, value in per_class}
            summaries.append(Summary(metrics, intervals, classes))
        return summaries

    def draw_samples(self, panels: Sequence[Panel], path: Path, heading: str) -> None:
        draw_panoptic(panels, path, self.protocol.class_names, heading=heading)

    def draw_photographs(self, panels: Mapping[str, Panel], path: Path, heading: str) -> dict[str, str]:
        """Draws, and says by name how well the accelerated segments of each photograph agree with the dense ones."""
        draw_panoptic(list(panels.values()), path, self.protocol.class_names, heading=heading)
        said = {}
        for name, panel in panels.items():
            sums = image_sums(panel.accelerated, panel.dense, len(self.protocol.class_names))
            quality = metrics_from_sums(sums, self.protocol.things)["pq"].item()
            none = "the dense model finds no segment"
            said[name] = f"PQ of its segments against the dense model's is {quality:.3f}" if sums[-1] else none
        return said
