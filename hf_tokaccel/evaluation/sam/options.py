"""Options of the evaluation of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..options import BatchSize, Options, Output

SPECIFICATIONS = "photographs (of scikit-image), or a folder of images"
EXAMPLE = '{"cat.jpg": {"points": [[320, 240]], "boxes": [[10, 20, 200, 160]]}}'


@dataclass(kw_only=True)
class SamOptions(Options):
    """SAM, dense against accelerated: mIoU with the dense model's masks, speed and cost of the encoder, and pictures.

    hf_tokaccel evaluate sam --model facebook/sam-vit-base
    hf_tokaccel evaluate sam --model facebook/sam-vit-huge --dataset DIR --points-per-side 12
    hf_tokaccel evaluate sam --model syscv-community/sam-hq-vit-base --dataset DIR --prompts FILE.json
    hf_tokaccel evaluate sam --model facebook/sam-vit-base --images
    """

    task = "sam"

    model: Annotated[str | None, Option(help="Hub id or folder of a SAM or SAM-HQ; none comes with the package.")] = (
        None
    )
    dataset: Annotated[str, Option(help=SPECIFICATIONS)] = "photographs"
    batch_size: BatchSize = 1
    output: Output = Path("outputs/evaluate_sam")
    points_per_side: Annotated[int | None, Option(help="Points of the grid of prompts; default: 6.")] = None
    prompts: Annotated[
        str | None, Option(metavar="FILE", help=f"JSON with prompts of every image, such as {EXAMPLE}")
    ] = None
