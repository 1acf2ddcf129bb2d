"""Train and evaluate UperNet on a small Swin, plain or with semantic tokens, on rendered scenes of typical materials.

accelerate launch --cpu --num_processes 1 examples/train_upernet.py --output my-model
accelerate launch --cpu --num_processes 1 examples/train_upernet.py --backbone stvit_r --output my-faster-model
python examples/train_upernet.py --evaluate my-model

Both backbones are trained from scratch, on the same scenes in the same order; --image-size is that of --evaluate.
"""

import argparse

from transformers import SegformerImageProcessor, SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

import hf_tokaccel as ta
from hf_tokaccel.settings.semantic import SemanticTokenConfig
from hf_tokaccel.training.segmentation import LABELS, run_segmentation, segmentation_parser

BACKBONES = ("swin", "stvit_r")


def build_config(args: argparse.Namespace) -> UperNetConfig:
    widths = [args.width * 2**i for i in range(4)]
    backbone = SwinConfig(
        image_size=args.image_size,
        patch_size=args.patch_size,
        embed_dim=args.width,
        depths=[2, 2, args.layers, 2],
        num_heads=[max(1, width // args.head_width) for width in widths],
        window_size=7,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    if args.backbone == "stvit_r":
        backbone = ta.accelerate_config(backbone, SemanticTokenConfig(recover=True))
    return UperNetConfig(backbone_config=backbone, hidden_size=args.features, use_auxiliary_head=False, **LABELS)


def build_model(args: argparse.Namespace) -> UperNetForSemanticSegmentation:
    return UperNetForSemanticSegmentation(build_config(args))


def build_processor(side: int) -> SegformerImageProcessor:
    half = [0.5] * 3
    return SegformerImageProcessor(size={"height": side, "width": side}, image_mean=half, image_std=half)


def main() -> None:
    sizes = {"patch-size": 2, "head-width": 32, "features": 32}
    arguments = segmentation_parser(__doc__, "56:16:500,112:8:400", "outputs/train_upernet", sizes)
    arguments.add_argument(
        "--backbone", choices=BACKBONES, default="swin", help="stvit_r: the third stage of Swin on semantic tokens"
    )
    arguments.set_defaults(mixed_precision="bf16", image_size=112, width=32, layers=6)
    arguments.set_defaults(lr=2e-3, muon_lr=0.03, warmup=100)
    run_segmentation(
        arguments.parse_args(),
        build=build_model,
        processor=build_processor,
        bias=lambda model: model.decode_head.classifier.bias,
        # Matrices by their form, but tables by what they are for.
        adamw=("relative_position_bias_table",),
    )


if __name__ == "__main__":
    main()
