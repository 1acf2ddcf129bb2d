"""Depth estimation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

hf_tokaccel evaluate depth
hf_tokaccel evaluate depth --model Intel/dpt-large --dataset nyuv2:/data/nyu --dtype bfloat16
hf_tokaccel evaluate depth --accel cluster_after=4,cluster_grid=12x12,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate depth --cpu
"""

import argparse

import torch

from ...images import input_size
from ...measure.metrics.depth import DepthProtocol
from ...reference import reference_model_path
from ..models import load_model
from ..script import Loaded, common_parser
from .data import SPECIFICATIONS, open_depth_dataset
from .task import DEPTH_MODELS, DepthTask, choose_alignment


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    parser = common_parser(description, what="depth", datasets=SPECIFICATIONS, output="outputs/evaluate_depth")
    add = parser.add_argument
    add("--depth-column", default="depth", help="of a `datasets` table")
    add("--depth-scale", type=float, help="stored units per metre in the depth column, such as 1000 for millimetres")
    add(
        "--max-depth", type=float, help="largest true depth that counts in a `datasets` table, in metres (default: 80)"
    )
    add("--alignment", default="auto", help="auto, none, scale or scale_shift; auto aligns relative models only")
    return parser


def load(args: argparse.Namespace, device: torch.device) -> Loaded:
    folder = args.model or reference_model_path("depth")
    dense, stored, processor = load_model(folder, DEPTH_MODELS, dtype=args.dtype, device=device)
    alignment, inverse = choose_alignment(dense.config, args.alignment)
    dataset, protocol = None, DepthProtocol(alignment=alignment, inverse=inverse)
    if args.images is None:
        dataset = open_depth_dataset(
            args.dataset,
            split=args.split or "test",
            limit=args.limit,
            seed=args.seed,
            size=input_size(processor),
            columns=(args.image_column, args.depth_column),
            depth_scale=args.depth_scale,
            max_depth=args.max_depth,
        )
        protocol = dataset.protocol(alignment, inverse)
    return Loaded(args.model or "reference depth model", dense, stored, DepthTask(processor, protocol), dataset)
