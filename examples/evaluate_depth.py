"""Depth estimation, dense against accelerated: quality, speed and cost in one table, as JSON, and as pictures.

accelerate launch examples/evaluate_depth.py
accelerate launch examples/evaluate_depth.py --model Intel/dpt-large --dataset nyuv2:/data/nyu --dtype bfloat16
accelerate launch examples/evaluate_depth.py --accel cluster_after=4,cluster_grid=12x12,expansion=delta --images
accelerate launch --multi_gpu --num_processes 2 examples/evaluate_depth.py --cpu
"""

import sys

from hf_tokaccel.cli.evaluate import run_script


def main(argv: list[str] | None = None) -> int:
    return run_script("depth", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
