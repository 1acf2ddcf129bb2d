"""Train and evaluate the reference segmentation model: a small Segmenter on rendered scenes of typical materials.

accelerate launch --cpu --num_processes 1 examples/train_segmentation.py --mixed-precision bf16 --output my-model
python examples/train_segmentation.py --evaluate hf_tokaccel/reference/segmenter-scenes
"""

import argparse
import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hf_tokaccel.models.segmenter import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    segmenter_image_processor,
)
from hf_tokaccel.reference import reference_model_path
from hf_tokaccel.reference.training import Task, parser, place, print_metrics, train
from hf_tokaccel.scenes import CLASS_NAMES, render_scenes

MATERIALS = "typical"
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
        patch_size=8,
        initializer_range=0.05,
        layer_norm_eps=1e-12,  # the DPT's
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=args.heads,
        decoder_intermediate_size=args.decoder_mlp,
        decoder_dropout_prob=0.0,
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: i for i, name in enumerate(CLASS_NAMES)},
    )
    model = SegmenterForSemanticSegmentation(config)
    if args.init == "none":
        place(model.segmenter.embeddings.position_embeddings, args.image_size // 8)
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


@functools.cache
def class_weights(balance: float, device: torch.device) -> Tensor:
    """Return the weights of the classes, powers of their rareness; the mean over pixels is 1."""
    labels = render_scenes(range(256), (64, 64), "train", 0, materials=MATERIALS).labels
    share = labels.flatten().bincount(minlength=len(CLASS_NAMES)) / labels.numel()
    weights = share.clamp(min=1e-4) ** -balance
    return (weights / (weights * share).sum()).to(device)


def segmentation_loss(logits: Tensor, labels: Tensor, balance: float) -> Tensor:
    """Return weighted cross entropy plus Dice loss over the classes of the batch.

    Both make up for the sizes of the classes: mIoU counts a cup as much as the floor.
    """
    logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    log = logits.log_softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).to(log.dtype)
    chance, there = log.exp(), truth.sum(dim=(0, 2, 3))
    dice = 1 - (2 * (chance * truth).sum(dim=(0, 2, 3)) + 1) / (chance.sum(dim=(0, 2, 3)) + there + 1)
    return F.nll_loss(log, labels, weight=class_weights(balance, labels.device)) + dice[there > 0].mean()


@torch.no_grad()
def adjust_logits(model: SegmenterForSemanticSegmentation, args: argparse.Namespace) -> None:
    """Subtract from the logits what the class weights added to them: the logarithm of the weights, or most of it.

    See logit adjustment (Menon et al., ICLR 2021, section 4.1); weights help rare classes to be learned, but then too
    many pixels are given to them.
    """
    bias = model.decode_head.mask_layernorm.bias
    bias -= args.adjustment * class_weights(args.balance, bias.device).log()


@torch.no_grad()
def evaluate(model: nn.Module, split: str, seed: int, count: int, size: int, processor=None) -> dict:
    """Return mIoU, mean and pixel accuracy, and the IoU of each class, all from one confusion matrix of all pixels."""
    model.eval()
    device, classes = next(model.parameters()).device, len(CLASS_NAMES)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for start in range(0, count, 16):
        numbers = range(start, min(start + 16, count))
        batch = render_scenes(numbers, (size, size), split, seed, device, MATERIALS)
        pixels = batch.image * 2 - 1
        if processor is not None:
            images = [(i * 255).round().to(torch.uint8).cpu() for i in batch.image]
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(device)
        logits = F.interpolate(model(pixel_values=pixels).logits.float(), (size, size), mode="bilinear")
        pairs = batch.labels * classes + logits.argmax(dim=1)
        confusion += pairs.flatten().bincount(minlength=classes * classes)
    table = confusion.view(classes, classes).double().cpu()
    hits, truth = table.diag(), table.sum(1)
    union = truth + table.sum(0) - hits
    iou, seen = hits / union.clamp(min=1), truth > 0
    scores = {"miou": iou[union > 0].mean(), "mean_accuracy": (hits / truth)[seen].mean()}
    scores["pixel_accuracy"] = hits.sum() / truth.sum()
    names = [name for name, there in zip(CLASS_NAMES, union > 0, strict=True) if there]
    per_class = dict(zip(names, [round(v, 3) for v in iou[union > 0].tolist()], strict=True))
    return {k: round(float(v), 4) for k, v in scores.items()} | {"iou": per_class}


def main() -> None:
    arguments = parser(__doc__, "96:16:600,192:8:1200", "outputs/train_segmentation", {"decoder-mlp": 256})
    arguments.add_argument(
        "--init", default="depth", help="encoder to start from: depth (the reference model), a DPT's folder, or none"
    )
    arguments.add_argument("--balance", type=float, default=0.5, help="0 weighs classes by their pixels, 1 equally")
    arguments.add_argument(
        "--adjustment", type=float, default=0.6, help="share of the log weights that the trained logits give back"
    )
    arguments.set_defaults(lr=1.5e-3, muon_lr=0.03, warmup=100)
    args = arguments.parse_args()
    task = Task(
        build=build_model,
        loss=lambda output, batch: segmentation_loss(output.logits, batch["labels"], args.balance),
        evaluate=evaluate,
        processor=lambda side: segmenter_image_processor(SegmenterConfig(image_size=side)),
        materials=MATERIALS,
        finish=adjust_logits,
    )
    if args.evaluate:
        model = AutoModelForSemanticSegmentation.from_pretrained(args.evaluate, dtype=torch.float32)
        print_metrics(model, AutoImageProcessor.from_pretrained(args.evaluate), args, task)
    else:
        train(args, task)


if __name__ == "__main__":
    main()
