"""Panoptic segmentation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

accelerate launch examples/evaluate_panoptic.py
accelerate launch examples/evaluate_panoptic.py --model MODEL --dataset coco:DIR
accelerate launch examples/evaluate_panoptic.py --model MODEL --dataset ade20k:DIR --threshold 0.8
accelerate launch examples/evaluate_panoptic.py --accel cluster_after=7,cluster_grid=4x4,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 examples/evaluate_panoptic.py --cpu
"""

import sys

from hf_tokaccel.cli.evaluate import run_script


def main(argv: list[str] | None = None) -> int:
    return run_script("panoptic", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
