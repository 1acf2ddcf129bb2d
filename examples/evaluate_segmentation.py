"""Semantic segmentation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

accelerate launch examples/evaluate_segmentation.py
accelerate launch examples/evaluate_segmentation.py --model Intel/dpt-large-ade --dataset ade20k:DIR
accelerate launch examples/evaluate_segmentation.py --model MODEL --dataset cityscapes:DIR --crop 768 --stride 512
accelerate launch examples/evaluate_segmentation.py --accel cluster_after=5,cluster_grid=17x17,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 examples/evaluate_segmentation.py --cpu
"""

import sys

from hf_tokaccel.cli.evaluate import run_script


def main(argv: list[str] | None = None) -> int:
    return run_script("segmentation", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
