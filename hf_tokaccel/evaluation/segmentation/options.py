"""Options of the evaluation of semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typer import Option

from ..options import TABLES, Output, TableOptions

SPECIFICATIONS = (
    f"scenes, scenes:any, ade20k:DIR, cityscapes:DIR, pascal_context59:DIR, pascal_context60:DIR, {TABLES}"
)
INFERENCES = ("auto", "whole", "sliding")


def _label(text: str) -> int | None:
    return int(text) if text else None


@dataclass(kw_only=True)
class SegmentationOptions(TableOptions):
    """Semantic segmentation, dense against accelerated: quality, speed and cost as table, JSON and pictures.

    hf_tokaccel evaluate segmentation
    hf_tokaccel evaluate segmentation --model Intel/dpt-large-ade --dataset ade20k:DIR
    hf_tokaccel evaluate segmentation --model MODEL --dataset cityscapes:DIR --crop 768 --stride 512
    hf_tokaccel evaluate segmentation --model facebook/mask2former-swin-large-ade-semantic --dataset ade20k:DIR
    hf_tokaccel evaluate segmentation --accel cluster_after=5,cluster_grid=17x17,expansion=delta --images
    accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate segmentation --cpu
    """

    task = "segmentation"

    dataset: Annotated[str, Option(help=SPECIFICATIONS)] = "scenes"
    output: Output = Path("outputs/evaluate_segmentation")
    label_column: Annotated[str, Option(help="Of a `datasets` table.")] = "label"
    ignore_label: Annotated[
        list[int],
        Option(metavar="[INTEGER ...]", help="Label values of a `datasets` table to leave out.", parser=_label),
    ] = field(default_factory=lambda: [255])
    reduce_labels: Annotated[
        bool, Option("--reduce-labels", help="In a `datasets` table 0 does not count and classes start at 1.")
    ] = False
    inference: Annotated[str, Option(help=f"{', '.join(INFERENCES)}; auto slides where a crop is known.")] = "auto"
    crop: Annotated[
        int | None, Option(help="Side of sliding windows in pixels; default: as stored with the model.")
    ] = None
    stride: Annotated[
        int | None, Option(help="Step between them; default: as stored with the model, or the crop.")
    ] = None
