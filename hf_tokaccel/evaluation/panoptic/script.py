"""Panoptic segmentation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

hf_tokaccel evaluate panoptic
hf_tokaccel evaluate panoptic --model MODEL --dataset coco:DIR
hf_tokaccel evaluate panoptic --model MODEL --dataset ade20k:DIR --threshold 0.8
hf_tokaccel evaluate panoptic --accel cluster_after=7,cluster_grid=4x4,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate panoptic --cpu
"""

import argparse

import torch

from ...images import input_size
from ...reference import reference_model_path
from ..models import load_model
from ..queries import give_task_input
from ..script import Loaded, common_parser
from .data import MATCHES, SPECIFICATIONS, open_panoptic_dataset
from .task import PANOPTIC_MODELS, PanopticProtocol, PanopticTask, class_names, things_without_data


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    parser = common_parser(
        description, what="panoptic segmentation", datasets=SPECIFICATIONS, output="outputs/evaluate_panoptic"
    )
    add = parser.add_argument
    add("--match", default="names", help=f"pairs categories with the model's classes by: {', '.join(MATCHES)}")
    add("--threshold", type=float, help="score from which a query counts (default: the image processor's)")
    add("--overlap", type=float, help="share of its mask that a segment must keep (default: the image processor's)")
    return parser


def load(args: argparse.Namespace, device: torch.device) -> Loaded:
    folder = args.model or reference_model_path("panoptic")
    dense, stored, processor = load_model(folder, PANOPTIC_MODELS, dtype=args.dtype, device=device)
    give_task_input(dense, str(folder))
    labels = class_names(dense.config)
    dataset = None
    if args.images is None:
        dataset = open_panoptic_dataset(
            args.dataset,
            labels=labels,
            split=args.split,
            limit=args.limit,
            seed=args.seed,
            size=input_size(processor),
            match=args.match,
        )
    protocol = PanopticProtocol(
        class_names=labels,
        things=things_without_data(labels) if dataset is None else dataset.things,
        threshold=args.threshold,
        overlap=args.overlap,
        match=args.match,
        void="none" if dataset is None else dataset.void,
        seed=args.seed,
    )
    return Loaded(args.model or "reference panoptic model", dense, stored, PanopticTask(processor, protocol), dataset)
