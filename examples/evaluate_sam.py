"""SAM, dense against accelerated: mIoU with the dense model's masks, speed and cost of the encoder, and pictures.

accelerate launch examples/evaluate_sam.py --model facebook/sam-vit-base
accelerate launch examples/evaluate_sam.py --model facebook/sam-vit-huge --dataset DIR --points-per-side 12
accelerate launch examples/evaluate_sam.py --model syscv-community/sam-hq-vit-base --dataset DIR --prompts FILE.json
accelerate launch examples/evaluate_sam.py --model facebook/sam-vit-base --images
"""

import sys

from hf_tokaccel.cli.evaluate import run_script


def main(argv: list[str] | None = None) -> int:
    return run_script("sam", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
