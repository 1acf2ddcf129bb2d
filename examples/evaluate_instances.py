"""Objects, dense against accelerated: box and mask AP, speed and cost in one table, as JSON, and as pictures.

accelerate launch examples/evaluate_instances.py
accelerate launch examples/evaluate_instances.py --model facebook/maskformer-swin-tiny-coco --dataset coco:DIR
accelerate launch examples/evaluate_instances.py --model facebook/detr-resnet-50 --dataset coco:DIR --accel none
accelerate launch examples/evaluate_instances.py --images
accelerate launch --multi_gpu --num_processes 2 examples/evaluate_instances.py --cpu
"""

import argparse
import sys

import torch

from hf_tokaccel.evaluation.coco import SPECIFICATIONS, match_categories, open_instance_dataset
from hf_tokaccel.evaluation.instances_task import INSTANCE_MODELS, InstanceProtocol, InstanceTask
from hf_tokaccel.evaluation.models import input_size, load_model
from hf_tokaccel.evaluation.panoptic_task import give_task_input
from hf_tokaccel.evaluation.script import Loaded, common_parser, run_script
from hf_tokaccel.reference import reference_model_path


def build_parser() -> argparse.ArgumentParser:
    parser = common_parser(
        __doc__,
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


def main(argv: list[str] | None = None) -> int:
    return run_script(build_parser(), load, argv)


if __name__ == "__main__":
    sys.exit(main())
