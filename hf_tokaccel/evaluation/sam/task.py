"""SAM as the evaluation loop sees it: masks of the accelerated encoder against those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskGeneration, SamConfig, SamHQConfig

from ...checkpoint import ModelKind
from ...hosts.track import last_steps, observe_clusters
from ...measure.metrics.bootstrap import bootstrap, interval
from ...measure.variant import Variant
from ...models.sam import TokAccelSamConfig
from ...models.sam_hq import TokAccelSamHQConfig
from ..pictures import Panel
from ..task import Summary, Task
from .data import Prompts, grid_prompts
from .pictures import draw_masks

SAM_MODELS = ModelKind(
    autos={AutoModelForMaskGeneration: (SamConfig, SamHQConfig, TokAccelSamConfig, TokAccelSamHQConfig)},
    lacks="is no SAM whose vision encoder can be accelerated",
    trained_for="SAM or SAM-HQ",
    example="facebook/sam-vit-base",
)
PROMPTS_AT_ONCE = 16  # masks of more prompts at full size would fill the memory


@dataclass(frozen=True)
class SamProtocol:
    """What masks are asked for.

    Attributes:
        points_per_side: Of the grid of points in an image without prompts of its own.
        prompts: By image name.
        resamples: Draws of the bootstrap.
        seed: Of those draws.
    """

    points_per_side: int = 6
    prompts: Mapping[str, Prompts] = field(default_factory=dict)
    resamples: int = 1000
    seed: int = 0

    def of(self, name: str, size: tuple[int, int]) -> Prompts:
        prompts = self.prompts.get(name) or grid_prompts(size, self.points_per_side)
        prompts.check(name, size)
        return prompts

    def to_dict(self) -> dict:
        grid = f"{self.points_per_side}x{self.points_per_side} points on a grid"
        return {
            "prompts": "points and boxes of a file" if self.prompts else grid,
            "masks": "of a point the one that the dense model ranks first, of a box the only one",
            "reference": "masks of the dense model from the same prompts",
            "interval": f"95 %, bootstrap over images, {self.resamples} resamples, seed {self.seed}",
        }


@dataclass(frozen=True)
class Masks:
    """Masks of one image.

    Attributes:
        masks: Bool (P, M, H, W): M candidates of each of P prompts.
        ranks: What the model thinks of each, (P, M).
    """

    masks: Tensor
    ranks: Tensor

    def best(self, ranks: Tensor | None = None) -> Tensor:
        """(P, H, W): of each prompt the candidate that these ranks, or its own, have first."""
        chosen = (self.ranks if ranks is None else ranks).argmax(1)
        return self.masks[torch.arange(len(chosen)), chosen]


def mask_iou(one: Tensor, two: Tensor) -> Tensor:
    """IoU (P,) of masks (P, H, W) with those at the same place; two empty masks agree."""
    both, either = ((op(one, two)).flatten(1).sum(1).double() for op in (torch.logical_and, torch.logical_or))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


class SamTask(Task):
    """Masks against those of the dense model, which must be the first variant, for `evaluate_variants`.

    Args:
        model: Dense model; its prompt encoder and mask decoder, which no variant changes, make all masks.
        processor: Its image processor.
        protocol: Prompts.
    """

    name = "mask-generation"
    label = "prompts"
    no_label_hint = "give prompts"
    num_sums = 5
    # The published settings on ViT-H: windows of 10x10 of 14x14 tokens after 14 and after 8 of 32 layers.
    shares = ((14 / 32, 10 / 14), (8 / 32, 10 / 14))
    variations = ({"expansion": "soft"}, {"expansion": "nearest"}, {"expansion": "delta"})

    def __init__(self, model: torch.nn.Module, processor, protocol: SamProtocol):
        self.model, self.processor, self.protocol = model, processor, protocol

    def encode(self, sample: dict) -> dict:
        """Model input, `size` of the image, `reshaped` size of the image in the input, and `prompts`."""
        size = tuple(sample["image"].shape[:2])
        encoded = self.processor(images=sample["image"], return_tensors="pt", input_data_format="channels_last")
        reshaped = tuple(torch.as_tensor(encoded["reshaped_input_sizes"])[0].tolist())
        prompts = self.protocol.of(sample["name"], size)
        return {"pixel_values": encoded["pixel_values"][0], "size": size, "reshaped": reshaped, "prompts": prompts}

    def run(self, variant: Variant, pixel_values: Tensor) -> dict[str, Any]:
        """The vision encoder's work, as the mask decoder takes it."""
        embeddings = variant.model.get_image_embeddings(variant.inputs(pixel_values))
        if isinstance(embeddings, Tensor):
            return {"image_embeddings": embeddings}
        return dict(zip(("image_embeddings", "intermediate_embeddings"), embeddings, strict=True))

    def timed(self, variant: Variant, pixel_values: Tensor) -> Callable[[], Any]:
        return partial(variant.model.get_image_embeddings, variant.inputs(pixel_values))

    def decode(self, outputs: dict[str, Any], items: Sequence[dict]) -> list[Masks]:
        """Masks of each image at its size."""
        decoded = []
        for i, item in enumerate(items):
            # A list is of layers, each with the whole batch.
            own = {k: v[i : i + 1] if isinstance(v, Tensor) else [x[i : i + 1] for x in v] for k, v in outputs.items()}
            parts = [self._decode_prompts(own, item, prompts) for prompts in _portions(item["prompts"])]
            # A box has one candidate, a point several: the places left over rank last.
            most = max(part.masks.shape[1] for part in parts)
            parts = [_widen(part, most) for part in parts]
            decoded.append(Masks(torch.cat([p.masks for p in parts]), torch.cat([p.ranks for p in parts])))
        return decoded

    def _decode_prompts(self, embeddings: dict[str, Any], item: dict, prompts: dict[str, Tensor]) -> Masks:
        scale = torch.tensor([new / old for new, old in zip(item["reshaped"], item["size"], strict=True)]).flip(0)
        ((name, places),) = prompts.items()
        device = embeddings["image_embeddings"].device
        scaled = (places.unflatten(-1, (-1, 2)) * scale).flatten(-2).to(device)
        if name == "input_points":
            # One prompt each, of one point that is on the object.
            on_object = torch.ones(1, len(scaled), 1, dtype=torch.long, device=device)
            prompt = {"input_points": scaled[None, :, None], "input_labels": on_object}
        else:
            prompt = {"input_boxes": scaled[None]}
        output = self.model(**embeddings, **prompt, multimask_output=name == "input_points")
        masks = self.processor.post_process_masks([output.pred_masks[0].float()], [item["size"]], [item["reshaped"]])
        return Masks(masks[0].cpu(), output.iou_scores[0].float().cpu())

    def score(self, prediction: Masks, item: dict) -> Tensor:
        """Sums over prompts: IoU of the dense model's first choice, of each model's own, IoU over 0.9, prompts; and 1.

        The first prediction of an item is the dense model's: what the others are compared with.
        """
        dense: Masks = item.setdefault("dense", prediction)
        same = mask_iou(prediction.best(dense.ranks), dense.best())
        own = mask_iou(prediction.best(), dense.best())
        return torch.tensor([same.sum(), own.sum(), (same > 0.9).sum(), len(same), 1], dtype=torch.float64)

    def summarise(self, sums: Tensor, kept: Sequence[Mapping[int, Any]] = ()) -> list[Summary]:
        counted = sums[:, sums[0, :, -1] > 0]
        totals = counted.sum(1)
        drawn = bootstrap(counted, self.protocol.resamples, self.protocol.seed)
        summaries = []
        for total, draws in zip(totals, drawn, strict=True):
            values = (total[:3] / total[3]).tolist()
            metrics = dict(zip(("miou", "chosen_miou", "over_90"), values, strict=True))
            summaries.append(Summary(metrics, {"miou": interval(draws[:, 0] / draws[:, 3])}))
        return summaries

    @torch.inference_mode()
    def panel(self, dense: Variant, accelerated: Variant, sample: dict) -> Panel:
        """One line of a figure that compares two variants on a sample; instead of maps it has masks (P, H, W)."""
        item, found = self.encode(sample), []
        for variant in (dense, accelerated):
            pixel_values = item["pixel_values"][None].to(variant.device)
            with observe_clusters() as seen:
                outputs = self.run(variant.with_eager(), pixel_values)
            found += self.decode(outputs, [item])
        labels = last_steps(seen)[0].image_labels()[0].cpu()
        # The model's input is padded at the bottom and right.
        side = pixel_values.shape[-1]
        rows, columns = (max(round(n * labels.shape[-1] / side), 1) for n in item["reshaped"])
        ranks = found[0].ranks
        masks = [one.best(ranks) for one in found]
        return Panel(sample["image"], *masks, labels[:rows, :columns])

    def draw_samples(self, panels: Sequence[Panel], path: Path, heading: str) -> None:
        draw_masks(panels, path, heading=heading)

    def draw_photographs(self, panels: Mapping[str, Panel], path: Path, heading: str) -> dict[str, str]:
        """Draws, and says by name the mean IoU of the masks of each photograph."""
        draw_masks(list(panels.values()), path, heading=heading)
        means = {name: mask_iou(p.dense, p.accelerated).mean().item() for name, p in panels.items()}
        return {name: f"mean IoU {value:.3f} with the masks of the dense model" for name, value in means.items()}


def _portions(prompts: Prompts) -> list[dict[str, Tensor]]:
    """Prompts of one kind, as many as are decoded at once."""
    kinds = {"input_points": prompts.points, "input_boxes": prompts.boxes}
    return [{name: part} for name, places in kinds.items() if len(places) for part in places.split(PROMPTS_AT_ONCE)]


def _widen(found: Masks, candidates: int) -> Masks:
    """With empty candidates that rank last, up to a number."""
    count = candidates - found.masks.shape[1]
    if not count:
        return found
    masks = torch.zeros(len(found.masks), count, *found.masks.shape[2:], dtype=torch.bool)
    return Masks(torch.cat([found.masks, masks], 1), F.pad(found.ranks, (0, count), value=-torch.inf))
