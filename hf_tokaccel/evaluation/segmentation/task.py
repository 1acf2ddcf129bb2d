"""Semantic segmentation as the evaluation loop sees it: models, whole images or sliding windows, metrics, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)

from ...checkpoint import ModelKind, SomeTypes
from ...checks import UserError, did_you_mean
from ...hosts.track import last_steps, observe_clusters
from ...images import patch_size
from ...measure.metrics.bootstrap import bootstrap, interval
from ...measure.metrics.segmentation import image_sums, metrics_from_counts, num_sums
from ...measure.variant import Variant
from ..pictures import Panel
from ..queries import QueryTask, at_input_size
from ..task import Summary, Task, add_label
from ..windows import Windows
from .data import SegmentationDataset
from .options import INFERENCES
from .pictures import draw_segmentation

# Queries whose classes and masks make a semantic map; EoMT cuts images into parts of its own, DETR shares out pixels.
_QUERIES = ("mask2former", "maskformer", "oneformer")
QUERY_MODELS = SomeTypes(MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, _QUERIES.__contains__)
SEGMENTATION_MODELS = ModelKind(
    autos={
        AutoModelForSemanticSegmentation: MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        AutoModelForUniversalSegmentation: QUERY_MODELS,
    },
    lacks="does no semantic segmentation",
    trained_for="semantic segmentation",
    example="Intel/dpt-large-ade",
)


@dataclass(frozen=True)
class SegmentationProtocol:
    """How images reach the model and predictions the score.

    Attributes:
        class_names: Names of the classes.
        windows: Sliding windows; None shows the model whole images as its image processor makes them.
        resizes: Whether windows see images whose shorter side is the crop.
        ignored: Which stored label values do not count, in words.
        prediction: How outputs become classes, in words.
        resamples: Draws of the bootstrap.
        seed: Of those draws.
    """

    class_names: tuple[str, ...]
    windows: Windows | None = None
    resizes: bool = False
    ignored: str = "none"
    prediction: str = "logits resized to the label (bilinear), then the largest"
    resamples: int = 1000
    seed: int = 0

    def to_dict(self) -> dict:
        windows = self.windows and {"crop": self.windows.crop, "stride": self.windows.stride, "resizes": self.resizes}
        return {
            "inference": "whole" if self.windows is None else "sliding",
            "windows": windows,
            "num_classes": len(self.class_names),
            "ignored_labels": self.ignored,
            "prediction": self.prediction,
            "interval": f"95 %, bootstrap over images, {self.resamples} resamples, seed {self.seed}",
        }


def choose_windows(config, inference: str = "auto", crop: int | None = None, stride: int | None = None):
    """Sliding windows for a model, or None for whole images.

    Args:
        config: Of the model; `inference_window_size` and `inference_window_stride` in it are what it was evaluated on.
        inference: `"whole"`, `"sliding"`, or `"auto"`: sliding where a crop is given or the configuration has one.
        crop: Side of the windows in pixels; None takes the configuration's.
        stride: Step between them; None takes the configuration's, or the crop.

    Raises:
        ValueError: An unknown inference, windows for whole images, no crop, a crop that is no multiple of the patch,
            or a stride that leaves gaps.
    """
    if inference not in INFERENCES:
        near = did_you_mean(inference, INFERENCES)
        raise UserError(f"inference={inference!r} must be one of {', '.join(INFERENCES)}; for example auto{near}")
    stored = getattr(config, "inference_window_size", None)
    given = {"crop": crop, "stride": stride}
    chosen = [f"{name}={value}" for name, value in given.items() if value is not None]
    if inference == "whole" or (inference == "auto" and not chosen and stored is None):
        if chosen:
            raise UserError(f"{chosen[0]} needs inference='sliding' or 'auto', not 'whole'")
        return None
    if crop is None and stored is None:
        raise UserError(
            "sliding windows need a crop, since the model's configuration has no inference_window_size; for example "
            f"crop={32 * patch_size(config)}"
        )
    side = stored if crop is None else crop
    if stride is None:
        stride = (getattr(config, "inference_window_stride", None) if crop is None else None) or side
    windows = Windows(side, stride)
    windows.check_patch(patch_size(config))
    return windows


def class_names(config, dataset: SegmentationDataset | None) -> tuple[str, ...]:
    """Names of the classes: those of the data set if it has any, else the model's."""
    if dataset is not None and dataset.class_names is not None:
        return dataset.class_names
    return tuple(config.id2label[i] for i in range(config.num_labels))


class SegmentationTask(Task):
    """Semantic segmentation for `evaluate_variants`.

    Args:
        processor: Image processor of the model.
        protocol: What is done with images and predictions.
        batch_size: Windows per forward pass.
    """

    name = "image-segmentation"
    label = "label"
    no_label_hint = "check which label values are ignored"
    # The paper's own relative setting first (ViT-L/16: 10 of 24 layers, 28x28 clusters of 40x40 tokens), then bolder.
    shares = ((10 / 24, 0.7), (8 / 24, 0.5))
    variations = (
        {"expansion": "soft"},
        {"expansion": "soft", "decode_clusters": False},
        {"expansion": "nearest"},
        {"expansion": "delta"},
    )

    def __init__(self, processor, protocol: SegmentationProtocol, batch_size: int = 8):
        self.processor, self.protocol, self.batch_size = processor, protocol, batch_size
        self.num_classes = len(protocol.class_names)
        self.num_sums = num_sums(self.num_classes)

    def encode(self, sample: dict) -> dict:
        """Model input and label: `pixel_values` (3, h, w), `size` of the image, `label` (H, W) if known."""
        image = sample["image"]
        item = {"pixel_values": self._pixel_values(image), "size": tuple(image.shape[:2])}
        return add_label(item, sample, "label")

    def _pixel_values(self, image) -> Tensor:
        windows, options = self.protocol.windows, {"return_tensors": "pt", "input_data_format": "channels_last"}
        if windows is None:
            return self.processor(images=image, **options)["pixel_values"][0]
        # The processor only normalises: its fixed size would distort what the windows slide over.
        for name in ("do_resize", "do_center_crop", "do_pad"):
            if hasattr(self.processor, name):
                options[name] = False
        pixel_values = self.processor(images=image, **options)["pixel_values"][0]
        size = tuple(pixel_values.shape[-2:])
        shrink = windows.crop / min(size) if self.protocol.resizes else 1
        fitted = windows.fit(tuple(max(round(side * shrink), 1) for side in size))
        if fitted == size:
            return pixel_values
        return F.interpolate(pixel_values[None], fitted, mode="bilinear", antialias=True)[0]

    def model_input(self, pixel_values: Tensor) -> Tensor:
        windows = self.protocol.windows
        return pixel_values if windows is None else pixel_values[..., : windows.crop, : windows.crop]

    def _batches(self, variant: Variant, pixel_values: Tensor) -> list[Tensor]:
        """Model inputs of a batch: the images, or all of their windows in batches."""
        if self.protocol.windows is None:
            return [variant.inputs(pixel_values)]
        crops = self.protocol.windows.crops(pixel_values).flatten(0, 1)
        return [variant.inputs(batch) for batch in crops.split(self.batch_size)]

    def run(self, variant: Variant, pixel_values: Tensor) -> Tensor:
        """Logits (n, B, classes, h, w) of the n windows of images (B, 3, H, W); a whole image is one window."""
        logits = torch.cat(
            [variant.model(pixel_values=inputs).logits for inputs in self._batches(variant, pixel_values)]
        )
        return logits.unflatten(0, (-1, len(pixel_values)))

    def timed(self, variant: Variant, pixel_values: Tensor) -> Callable[[], object]:
        calls = [partial(variant.model, pixel_values=inputs) for inputs in self._batches(variant, pixel_values)]
        return lambda: [call() for call in calls]

    def decode(self, outputs: Tensor, items: Sequence[dict]) -> list[Tensor]:
        """Predicted classes, int64 at the size of the image, which is that of the label."""
        windows, predictions = self.protocol.windows, []
        # One image at a time: with many classes, logits at full size are what fills the memory.
        for logits, item in zip(outputs.unbind(1), items, strict=True):
            merged = logits[0] if windows is None else windows.merge(logits, tuple(item["pixel_values"].shape[-2:]))
            resized = F.interpolate(merged[None].float(), item["size"], mode="bilinear")
            predictions.append(resized[0].argmax(0))
        return predictions

    def score(self, prediction: Tensor, item: dict) -> Tensor:
        return image_sums(prediction, item["label"], self.num_classes)

    def summarise(self, sums: Tensor, kept: Sequence[Mapping[int, Any]] = ()) -> list[Summary]:
        counted = sums[:, sums[0, :, -1] > 0]
        totals = metrics_from_counts(counted.sum(1))
        drawn = metrics_from_counts(bootstrap(counted, self.protocol.resamples, self.protocol.seed))["miou"]
        summaries = []
        for i in range(len(sums)):
            metrics = {name: totals[name][i].item() for name in ("miou", "mean_accuracy", "pixel_accuracy")}
            metrics["kept"] = (totals["miou"][i] / totals["miou"][0]).item()
            # The dense row is exact here: it is what the others are compared with.
            intervals = {"miou": interval(drawn[i])} | ({"kept": interval(drawn[i] / drawn[0])} if i else {})
            per_class = zip(self.protocol.class_names, totals["iou"][i].tolist(), strict=True)
            classes = {name: None if value != value else value for name, value in per_class}
            summaries.append(Summary(metrics, intervals, classes))
        return summaries

    @torch.inference_mode()
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants on a sample."""
        maps = [self.predict(variant, sample) for variant in (dense, accelerated)]
        pixel_values = self.encode(sample)["pixel_values"][None].to(accelerated.device)
        with observe_clusters() as seen:
            self.run(accelerated.with_eager(), pixel_values)
        labels = torch.cat([one.image_labels().cpu() for one in last_steps(seen)])
        size = tuple(pixel_values.shape[-2:])
        labels = labels[0] if len(labels) == 1 else self._paste(labels, size)
        return Panel(sample["image"], *maps, labels, sample.get("label"))

    def _paste(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Cluster maps of windows (n, h, w) as one map of all pixels; where windows overlap, the last one is seen."""
        windows, pasted = self.protocol.windows, torch.zeros(size, dtype=torch.long)
        for number, ((y, x), one) in enumerate(zip(windows.corners(size), labels, strict=True)):
            pixels = F.interpolate(one[None, None].float(), (windows.crop, windows.crop), mode="nearest")[0, 0].long()
            pasted[y : y + windows.crop, x : x + windows.crop] = pixels + number * (int(labels.max()) + 1)
        return pasted

    def draw_samples(self, panels: Sequence[Panel], path: Path, heading: str) -> None:
        draw_segmentation(panels, path, self.protocol.class_names, heading=heading)

    def draw_photographs(self, panels: Mapping[str, Panel], path: Path, heading: str) -> dict[str, str]:
        """Draws, and says by name on how many pixels the two maps of each photograph agree."""
        draw_segmentation(list(panels.values()), path, self.protocol.class_names, heading=heading)
        agreement = {name: (p.dense == p.accelerated).double().mean().item() for name, p in panels.items()}
        return {name: f"both models agree on {value:.2%} of the pixels" for name, value in agreement.items()}


class QuerySegmentationTask(QueryTask, SegmentationTask):
    """Semantic segmentation by models whose queries have a class and a mask each, on whole images.

    A class scores at a pixel what its queries say of the class times what their masks say of the pixel (Cheng et al.,
    MaskFormer, NeurIPS 2021, section 3.4).
    """

    truth = "label"
    timed = Task.timed
    model_input = Task.model_input

    def decode(self, outputs: tuple[Tensor, Tensor], items: Sequence[dict]) -> list[Tensor]:
        """Predicted classes, int64 at the size of the image, which is that of the label."""
        predictions = []
        for classes, masks, item in zip(*outputs, items, strict=True):
            inside = at_input_size(masks[None].float(), item)[0].sigmoid()
            scores = torch.einsum("qc,qhw->chw", classes.float().softmax(-1)[:, :-1], inside)
            predictions.append(F.interpolate(scores[None], item["size"], mode="bilinear")[0].argmax(0))
        return predictions


QUERY_PREDICTION = (
    "class scores of the queries times their masks, without padding, resized to the label (bilinear), then the largest"
)
