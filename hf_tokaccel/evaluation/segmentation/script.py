"""Semantic segmentation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

hf_tokaccel evaluate segmentation
hf_tokaccel evaluate segmentation --model Intel/dpt-large-ade --dataset ade20k:DIR
hf_tokaccel evaluate segmentation --model MODEL --dataset cityscapes:DIR --crop 768 --stride 512
hf_tokaccel evaluate segmentation --model facebook/mask2former-swin-large-ade-semantic --dataset ade20k:DIR
hf_tokaccel evaluate segmentation --accel cluster_after=5,cluster_grid=17x17,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate segmentation --cpu
"""

import argparse

import torch

from ...images import input_size
from ...reference import reference_model_path
from ..models import load_model
from ..queries import give_task_input
from ..script import Loaded, common_parser
from .data import SPECIFICATIONS, open_segmentation_dataset
from .task import (
    INFERENCES,
    QUERY_MODELS,
    QUERY_PREDICTION,
    SEGMENTATION_MODELS,
    QuerySegmentationTask,
    SegmentationProtocol,
    SegmentationTask,
    choose_windows,
    class_names,
)


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    parser = common_parser(
        description, what="semantic segmentation", datasets=SPECIFICATIONS, output="outputs/evaluate_segmentation"
    )
    add = parser.add_argument
    add("--label-column", default="label", help="of a `datasets` table")
    add("--ignore-label", type=int, nargs="*", default=[255], help="label values of a `datasets` table to leave out")
    add("--reduce-labels", action="store_true", help="in a `datasets` table 0 does not count and classes start at 1")
    add("--inference", default="auto", help=f"{', '.join(INFERENCES)}; auto slides where a crop is known")
    add("--crop", type=int, help="side of sliding windows in pixels (default: as stored with the model)")
    add("--stride", type=int, help="step between them (default: as stored with the model, or the crop)")
    return parser


def load(args: argparse.Namespace, device: torch.device) -> Loaded:
    folder = args.model or reference_model_path("segmentation")
    dense, stored, processor = load_model(folder, SEGMENTATION_MODELS, dtype=args.dtype, device=device)
    queries = type(dense.config) in QUERY_MODELS
    if queries:
        give_task_input(dense, str(folder), "semantic")
    windows = choose_windows(dense.config, args.inference, args.crop, args.stride)
    if queries and windows is not None:
        raise ValueError(
            f"sliding windows of {windows.crop} do not go with {args.model}, whose queries see whole images: leave "
            "out --crop, --stride and --inference"
        )
    dataset = None
    if args.images is None:
        dataset = open_segmentation_dataset(
            args.dataset,
            num_classes=dense.config.num_labels,
            split=args.split,
            limit=args.limit,
            seed=args.seed,
            size=input_size(processor),
            columns=(args.image_column, args.label_column),
            ignored=args.ignore_label,
            first_ignored=args.reduce_labels,
        )
    protocol = SegmentationProtocol(
        class_names=class_names(dense.config, dataset),
        windows=windows,
        resizes=dataset is not None and dataset.resizes,
        ignored="none" if dataset is None else dataset.ignored,
        seed=args.seed,
        **({"prediction": QUERY_PREDICTION} if queries else {}),
    )
    task = (QuerySegmentationTask if queries else SegmentationTask)(processor, protocol, args.batch_size)
    return Loaded(args.model or "reference segmentation model", dense, stored, task, dataset)
