"""SAM, dense against accelerated: mIoU with the dense model's masks, speed and cost of the encoder, and pictures.

hf_tokaccel evaluate sam --model facebook/sam-vit-base
hf_tokaccel evaluate sam --model facebook/sam-vit-huge --dataset DIR --points-per-side 12
hf_tokaccel evaluate sam --model syscv-community/sam-hq-vit-base --dataset DIR --prompts FILE.json
hf_tokaccel evaluate sam --model facebook/sam-vit-base --images
"""

import argparse

import torch

from ...images import open_photographs
from ..models import load_model
from ..script import Loaded, common_parser
from .data import EXAMPLE, SPECIFICATIONS, open_images, read_prompts
from .task import SAM_MODELS, SamProtocol, SamTask


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    parser = common_parser(
        description,
        what="SAM or SAM-HQ",
        datasets=SPECIFICATIONS,
        output="outputs/evaluate_sam",
        without=("--split", "--image-column"),
    )
    parser.set_defaults(dataset="photographs", batch_size=1)
    parser.add_argument("--points-per-side", type=int, help="points of the grid of prompts (default: 6)")
    parser.add_argument("--prompts", metavar="FILE", help=f"JSON with prompts of every image, such as {EXAMPLE}")
    return parser


def load(args: argparse.Namespace, device: torch.device) -> Loaded:
    if args.model is None:
        raise ValueError(f"--model is missing: no SAM comes with this package; give one, such as {SAM_MODELS.example}")
    if args.compile is not None:
        raise ValueError("--compile is not for SAM here: only its encoder is measured, which it would not compile")
    if args.points_per_side is not None and args.prompts is not None:
        raise ValueError("--points-per-side and --prompts exclude each other: a file names all prompts")
    side = 6 if args.points_per_side is None else args.points_per_side
    if side < 1:
        raise ValueError(f"--points-per-side {side} must be at least 1, for example 6")
    dense, stored, processor = load_model(args.model, SAM_MODELS, dtype=args.dtype, device=device)
    dataset = open_images(args.dataset, args.limit) if args.images is None else None
    names = tuple(open_photographs(args.images)) if dataset is None else dataset.names
    prompts = read_prompts(args.prompts, names) if args.prompts else {}
    task = SamTask(dense, processor, SamProtocol(side, prompts, seed=args.seed))
    return Loaded(args.model, dense, stored, task, dataset)
