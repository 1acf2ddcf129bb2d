"""Objects, dense against accelerated: box and mask AP, speed and cost in one table, as JSON, and as pictures.

hf_tokaccel evaluate instances
hf_tokaccel evaluate instances --model facebook/maskformer-swin-tiny-coco --dataset coco:DIR
hf_tokaccel evaluate instances --model facebook/detr-resnet-50 --dataset coco:DIR --accel none
hf_tokaccel evaluate instances --images
accelerate launch --multi_gpu --num_processes 2 -m hf_tokaccel.cli evaluate instances --cpu
"""

import argparse

import torch

from ...images import input_size
from ...reference import reference_model_path
from ..models import load_model
from ..queries import give_task_input
from ..script import Loaded, common_parser
from .data import SPECIFICATIONS, match_categories, open_instance_dataset
from .task import INSTANCE_MODELS, InstanceProtocol, InstanceTask


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    parser = common_parser(
        description,
        what="detection or instance segmentation",
        datasets=SPECIFICATIONS,
        output="outputs/evaluate_instances",
        without=("--image-column",),
    )
    parser.add_argument("--image-folder", help="where the images of a COCO file are, if not where COCO has them")
    return parser


def load(args: argparse.Namespace, device: torch.device) -> Loaded:
    folder = args.model or reference_model_path("panoptic")
    dense, stored, processor = load_model(folder, INSTANCE_MODELS, dtype=args.dtype, device=device)
    give_task_input(dense, str(folder), "instance")
    id2label, dataset = dense.config.id2label, None
    categories, labels = dict(id2label), {label: label for label in id2label}
    if args.images is None:
        dataset = open_instance_dataset(
            args.dataset,
            split=args.split,
            limit=args.limit,
            seed=args.seed,
            size=input_size(processor),
            image_folder=args.image_folder,
        )
        categories, labels = dataset.categories, match_categories(id2label, dataset.categories)
    task = InstanceTask(dense, processor, InstanceProtocol(categories, labels))
    if dataset is not None:
        task.check_dataset(dataset)
    return Loaded(args.model or "reference panoptic model", dense, stored, task, dataset)
