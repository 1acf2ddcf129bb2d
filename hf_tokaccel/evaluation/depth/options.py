"""Options of the evaluation of depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..options import TABLES, Output, Rounds, TableOptions

SPECIFICATIONS = f"scenes, nyuv2:DIR, kitti:DIR, {TABLES}"


@dataclass(kw_only=True)
class DepthOptions(TableOptions):
    """Depth estimation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

    hf_tokaccel evaluate depth
    hf_tokaccel evaluate depth --model Intel/dpt-large --dataset nyuv2:/data/nyu --dtype bfloat16
    hf_tokaccel evaluate depth --accel cluster_after=4,cluster_grid=12x12,expansion=delta --images
    accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate depth --cpu
    """

    task = "depth"

    dataset: Annotated[str, Option(help=SPECIFICATIONS)] = "scenes"
    rounds: Rounds = 5
    output: Output = Path("outputs/evaluate_depth")
    depth_column: Annotated[str, Option(help="Of a `datasets` table.")] = "depth"
    depth_scale: Annotated[
        float | None, Option(help="Stored units per metre in the depth column, such as 1000 for millimetres.")
    ] = None
    max_depth: Annotated[
        float | None, Option(help="Largest true depth that counts in a `datasets` table, in metres; default: 80.")
    ] = None
    alignment: Annotated[str, Option(help="auto, none, scale or scale_shift; auto aligns relative models only.")] = (
        "auto"
    )
