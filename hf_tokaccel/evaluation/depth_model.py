"""Depth models of Transformers as the evaluation loop sees them: loading, preparing images, reading outputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING

import hf_tokaccel as ta

from .depth import ALIGNMENTS, DEPTH_METRICS, DepthProtocol, metrics_from_sums
from .loop import Variant
from .pictures import Panel

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_depth_model(name: str | Path, *, dtype: str = "float32", device: torch.device | str = "cpu"):
    """Dense model, the accelerated setting stored with it (or None) and its image processor.

    Raises:
        ValueError: Nothing to load there, not a depth model, an unknown dtype, or weights that do not cover the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}; for example float32")
    name = str(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"model folder {name} has no config.json; give a folder written by save_pretrained or a Hub id"
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {name!r} cannot be loaded ({_first_line(error)}); give a Hub id such as Intel/dpt-large "
            "or a folder written by save_pretrained"
        ) from error
    if type(config) not in MODEL_FOR_DEPTH_ESTIMATION_MAPPING:
        types = sorted({c.model_type for c in MODEL_FOR_DEPTH_ESTIMATION_MAPPING})
        raise ValueError(
            f"model {name!r} is of type {config.model_type!r}, which estimates no depth; types that do: "
            f"{', '.join(types)}"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model, info = AutoModelForDepthEstimation.from_pretrained(name, dtype=DTYPES[dtype], output_loading_info=True)
    except OSError as error:
        raise ValueError(f"model {name!r} is incomplete: {_first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"model {name!r} lacks {len(missing)} weights of a depth model, for example {missing[0]}; "
            "give one that was trained for depth, such as Intel/dpt-large"
        )
    accel = stored_accel(config)
    dense = model if accel is None else ta.to_native(model)
    return dense.eval().to(device), accel, processor


def stored_accel(config) -> dict | None:
    """Accelerated setting in a configuration or in that of its backbone."""
    return getattr(config, "accel", None) or getattr(getattr(config, "backbone_config", None), "accel", None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


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
        raise ValueError(f"alignment={alignment!r} must be one of auto, {', '.join(ALIGNMENTS)}; for example auto")
    if relative and alignment == "none":
        raise ValueError(
            "alignment='none' needs a metric model, but this one predicts inverse depth up to scale and shift; "
            "use alignment='scale_shift'"
        )
    return alignment, relative


def patch_size(config) -> int:
    """Side of a patch in pixels; DPT keeps it in its own config or in that of its backbone."""
    backbone = getattr(config, "backbone_config", None)
    size = getattr(backbone, "patch_size", None) or getattr(config, "patch_size", None) or 1
    return int(max(size)) if isinstance(size, (list, tuple)) else int(size)


def input_size(processor, default: int = 384) -> tuple[int, int]:
    """Size that scenes are rendered at for an image processor: the one it makes anyway, (height, width) in pixels."""
    size = getattr(processor, "size", None) or {}
    height, width = (size.get(key) or size.get("shortest_edge") or default for key in ("height", "width"))
    return int(height), int(width)


class DepthTask:
    """Depth estimation for `evaluate_variants`: the image processor before the model, its post-processing after it."""

    num_sums = len(DEPTH_METRICS) + 1

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

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return metrics_from_sums(sums)

    @torch.inference_mode()
    def predict(self, variant: Variant, sample: dict) -> Tensor:
        """Map of one image (H, W) by one variant: aligned, in metres where the truth is known, else raw."""
        item = self.encode(sample)
        device = next(variant.model.parameters()).device
        (prediction,) = self.decode(variant(item["pixel_values"][None].to(device)), [item])
        prediction = prediction.cpu()
        return self.protocol.to_metres(prediction, item["depth"]) if "depth" in item else prediction

    @torch.inference_mode()
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants on a sample."""
        maps = [self.predict(variant, sample) for variant in (dense, accelerated)]
        device = next(accelerated.model.parameters()).device
        pixel_values = self.encode(sample)["pixel_values"][None].to(device)
        with ta.observe_clusters() as seen:
            accelerated.eager(pixel_values=accelerated.inputs(pixel_values))
        return Panel(sample["image"], *maps, seen[0].labels()[0].cpu(), sample.get("depth"))
