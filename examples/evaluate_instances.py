"""Objects, dense against accelerated: box and mask AP, speed and cost in one table, as JSON, and as pictures.

accelerate launch examples/evaluate_instances.py
accelerate launch examples/evaluate_instances.py --model facebook/maskformer-swin-tiny-coco --dataset coco:DIR
accelerate launch examples/evaluate_instances.py --model facebook/detr-resnet-50 --dataset coco:DIR --accel none
accelerate launch examples/evaluate_instances.py --images
accelerate launch --multi_gpu --num_processes 2 examples/evaluate_instances.py --cpu
"""

import sys

from hf_tokaccel.cli.evaluate import run_script


def main(argv: list[str] | None = None) -> int:
    return run_script("instances", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
