"""Options of the evaluation of detection and instance segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..options import Output, SplitOptions

SPECIFICATIONS = "scenes, scenes:any, coco:DIR (annotations/instances_SPLIT.json + SPLIT/), coco:FILE.json"


@dataclass(kw_only=True)
class InstanceOptions(SplitOptions):
    """Objects, dense against accelerated: box and mask AP, speed and cost in one table, as JSON, and as pictures.

    hf_tokaccel evaluate instances
    hf_tokaccel evaluate instances --model facebook/maskformer-swin-tiny-coco --dataset coco:DIR
    hf_tokaccel evaluate instances --model facebook/detr-resnet-50 --dataset coco:DIR --accel none
    hf_tokaccel evaluate instances --images
    accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate instances --cpu
    """

    task = "instances"

    dataset: Annotated[str, Option(help=SPECIFICATIONS)] = "scenes"
    output: Output = Path("outputs/evaluate_instances")
    image_folder: Annotated[
        str | None, Option(help="Where the images of a COCO file are, if not where COCO has them.")
    ] = None
