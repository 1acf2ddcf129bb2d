"""Depth estimation as the evaluation loop sees it: models, image processors, alignment, figures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForDepthEstimation
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING

from ...checkpoint import ModelKind
from ...checks import UserError, did_you_mean
from ...hosts.track import last_steps, observe_clusters
from ...measure.metrics.depth import ALIGNMENTS, DEPTH_METRICS, DepthProtocol, metrics_from_sums
from ...measure.variant import Variant
from ..pictures import Panel
from ..task import Summary, Task
from .pictures import draw_photographs, draw_scenes, relative_difference

DEPTH_MODELS = ModelKind(
    autos={AutoModelForDepthEstimation: MODEL_FOR_DEPTH_ESTIMATION_MAPPING},
    lacks="estimates no depth",
    trained_for="depth",
    example="Intel/dpt-large",
)


def is_relative(config) -> bool:
    """Whether a model predicts inverse depth up to scale and shift, instead of metres.

    Depth Anything says so itself. DPT does not: the MiDaS models (DPT, DPT-hybrid, DPT-BEiT, DPT-SwinV2) are relative,
    while those that Transformers converted for NYUv2 and KITTI (DPT-DINOv2) are metric and the only ones with
    `add_projection`. A DPT of one's own can state it in config.json as `"depth_estimation_type": "metric"`.
    """
    stated = getattr(config, "depth_estimation_type", None)
    if stated is not None:
        return stated == "relative"
    return config.model_type.removeprefix("tokaccel_") == "dpt" and not config.add_projection


def choose_alignment(config, alignment: str = "auto") -> tuple[str, bool]:
    """Alignment for `DepthProtocol` and whether predictions are inverse depth.

    Raises:
        ValueError: An unknown alignment, or none for a model whose output has no unit.
    """
    relative = is_relative(config)
    if alignment == "auto":
        return ("scale_shift", True) if relative else ("none", False)
    if alignment not in ALIGNMENTS:
        near = did_you_mean(alignment, ALIGNMENTS)
        raise UserError(
            f"alignment={alignment!r} must be one of auto, {', '.join(ALIGNMENTS)}; for example auto{near}"
        )
    if relative and alignment == "none":
        raise UserError(
            "alignment='none' needs a metric model, but this one predicts inverse depth up to scale and shift; "
            "use alignment='scale_shift'"
        )
    return alignment, relative


class DepthTask(Task):
    """Depth estimation for `evaluate_variants`: the image processor before the model, its post-processing after it."""

    name = "depth-estimation"
    label = "depth"
    no_label_hint = "check unit, range and crop"
    num_sums = len(DEPTH_METRICS) + 1
    # Half, two thirds and three quarters of the layers on clusters, from careful to bold. The weights sum to one: the
    # released l2 weights would change the scale of what a regression head reads.
    shares = ((1 / 2, 3 / 4), (1 / 3, 2 / 3), (1 / 4, 1 / 2))
    variations = tuple({"expansion": name, "normalization": "l1"} for name in ("nearest", "delta"))

    def __init__(self, processor, protocol: DepthProtocol):
        self.processor, self.protocol = processor, protocol
        self._post = getattr(processor, "post_process_depth_estimation", None)
        self._post_arguments = set(inspect.signature(self._post).parameters) if self._post else set()

    def encode(self, sample: dict) -> dict:
        """Model input and label: `pixel_values` (3, h, w), `size` of the image, `depth` (H, W) if known."""
        image = sample["image"]
        pixel_values = self.processor(images=image, return_tensors="pt", input_data_format="channels_last")[
            "pixel_values"
        ][0]
        depth = sample.get("depth")
        item = {"pixel_values": pixel_values, "size": tuple(image.shape[:2])}
        return item if depth is None else item | {"depth": torch.as_tensor(depth, dtype=torch.float32)}

    def decode(self, outputs, items: Sequence[dict]) -> list[Tensor]:
        """Predicted maps, float32 at the size of the label (or of the image where there is none)."""
        sizes = [tuple(item["depth"].shape) if "depth" in item else item["size"] for item in items]
        # Bicubic resizing in half precision costs more accuracy than the model does.
        outputs.predicted_depth = outputs.predicted_depth.float()
        if self._post is None:
            maps = outputs.predicted_depth[:, None]
            return [F.interpolate(m[None], s, mode="bilinear")[0, 0] for m, s in zip(maps, sizes, strict=True)]
        arguments = {"target_sizes": sizes}
        if "source_sizes" in self._post_arguments:
            arguments["source_sizes"] = [item["size"] for item in items]
        return [result["predicted_depth"] for result in self._post(outputs, **arguments)]

    def score(self, prediction: Tensor, item: dict) -> Tensor:
        return self.protocol.sums(prediction, item["depth"])

    def summarise(self, sums: Tensor, kept: Sequence[Mapping[int, Any]] = ()) -> list[Summary]:
        return [Summary(metrics_from_sums(row)) for row in sums.sum(1)]

    @torch.inference_mode()
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants: maps in metres where the truth is known, else raw."""
        depth = sample.get("depth")
        maps = [self.predict(variant, sample) for variant in (dense, accelerated)]
        if depth is not None:
            maps = [self.protocol.to_metres(prediction, depth) for prediction in maps]
        pixel_values = self.encode(sample)["pixel_values"][None].to(accelerated.device)
        with observe_clusters() as seen:
            accelerated.eager(pixel_values=accelerated.inputs(pixel_values))
        return Panel(sample["image"], *maps, last_steps(seen)[0].image_labels()[0].cpu(), depth)

    def draw_samples(self, panels: Sequence[Panel], path: Path, heading: str) -> None:
        draw_scenes(panels, path, heading=heading)

    def draw_photographs(self, panels: Mapping[str, Panel], path: Path, heading: str) -> dict[str, str]:
        """Draws, and says by name how far the two maps of each photograph differ."""
        inverse = self.protocol.inverse
        draw_photographs(list(panels.values()), path, heading=heading, inverse=inverse)
        differences = {
            name: relative_difference(panel.dense.numpy(), panel.accelerated.numpy(), inverse).mean()
            for name, panel in panels.items()
        }
        return {name: f"mean relative difference {value:.4f}" for name, value in differences.items()}
