"""Train and evaluate the reference segmentation model: a small Segmenter on rendered scenes of typical materials.

accelerate launch --cpu --num_processes 1 examples/train_segmentation.py --mixed-precision bf16 --output my-model
python examples/train_segmentation.py --evaluate hf_tokaccel/reference/segmenter-scenes
python examples/train_segmentation.py --size vit-s --mixed-precision bf16 --workers 8 --output segmenter-vit-s
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file

from hf_tokaccel.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation, segmenter_image_processor
from hf_tokaccel.reference import reference_model_path
from hf_tokaccel.training.scenes import VIT_SIZES, parse_sized, place
from hf_tokaccel.training.segmentation import LABELS, run_segmentation, segmentation_parser

# Of a DPT's encoder, in terms of Segmenter's.
RENAMED = (
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("encoder.layer.", "layers."),
)


def build_model(args: argparse.Namespace) -> SegmenterForSemanticSegmentation:
    """Return a Segmenter with an untrained decoder and, unless `--init none`, the encoder of a trained DPT."""
    config = SegmenterConfig(
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.mlp,
        image_size=args.image_size,
        patch_size=args.patch_size,
        initializer_range=0.05,
        layer_norm_eps=1e-12,  # the DPT's
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=args.heads,
        decoder_intermediate_size=args.decoder_mlp,
        decoder_dropout_prob=0.0,
        **LABELS,
    )
    model = SegmenterForSemanticSegmentation(config)
    if args.init == "none":
        place(model.segmenter.embeddings.position_embeddings, args.image_size // args.patch_size)
    elif not args.resume:
        load_encoder(model, reference_model_path("depth") if args.init == "depth" else Path(args.init))
    return model


def load_encoder(model: SegmenterForSemanticSegmentation, folder: Path) -> None:
    """Copy a DPT's encoder; its last LayerNorm stays as it is, since DPT has none."""
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith(("dpt.embeddings.", "dpt.encoder.layer.")):
            name = name.removeprefix("dpt.")
            for theirs, ours in RENAMED:
                name = name.replace(theirs, ours)
            state[name] = value.float()
    own = model.segmenter.state_dict()
    unlike = [k for k in own | state if not k.startswith("layernorm.") and (k not in state or k not in own)]
    unlike += [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if unlike:
        raise SystemExit(
            f"--init {folder}: this DPT's encoder has another size or form (at {unlike[0]}); take the sizes of its "
            "configuration, for example by --width and --layers, or --init none."
        )
    model.segmenter.load_state_dict(state, strict=False)


def main() -> None:
    arguments = segmentation_parser(
        __doc__, "96:16:600,192:8:1200", "outputs/train_segmentation", {"decoder-mlp": 256, "patch-size": 8}
    )
    arguments.add_argument(
        "--init", default="depth", help="encoder to start from: depth (the reference model), a DPT's folder, or none"
    )
    arguments.set_defaults(lr=1.5e-3, muon_lr=0.03, warmup=100)
    own = {"init": "none", "muon_lr": 0.02}
    sizes = {name: values | own | {"decoder_mlp": values["mlp"]} for name, values in VIT_SIZES.items()}
    run_segmentation(
        parse_sized(arguments, sizes),
        build=build_model,
        processor=lambda side: segmenter_image_processor(SegmenterConfig(image_size=side)),
        bias=lambda model: model.decode_head.mask_layernorm.bias,
    )


if __name__ == "__main__":
    main()
