"""Options of the evaluation of panoptic segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..options import Output, SplitOptions

SPECIFICATIONS = "scenes, scenes:any, coco:DIR, ade20k:DIR"
MATCHES = ("names", "order")


@dataclass(kw_only=True)
class PanopticOptions(SplitOptions):
    """Panoptic segmentation, dense against accelerated: quality, speed and cost as table, JSON and pictures.

    hf_tokaccel evaluate panoptic
    hf_tokaccel evaluate panoptic --model MODEL --dataset coco:DIR
    hf_tokaccel evaluate panoptic --model MODEL --dataset ade20k:DIR --threshold 0.8
    hf_tokaccel evaluate panoptic --accel cluster_after=7,cluster_grid=4x4,expansion=delta --images
    accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate panoptic --cpu
    """

    task = "panoptic"

    dataset: Annotated[str, Option(help=SPECIFICATIONS)] = "scenes"
    output: Output = Path("outputs/evaluate_panoptic")
    match: Annotated[str, Option(help=f"Pairs categories with the model's classes by: {', '.join(MATCHES)}.")] = (
        "names"
    )
    threshold: Annotated[
        float | None, Option(help="Score from which a query counts; default: the image processor's.")
    ] = None
    overlap: Annotated[
        float | None, Option(help="Share of its mask that a segment must keep; default: the image processor's.")
    ] = None
