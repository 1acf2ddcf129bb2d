"""Train and evaluate the reference panoptic model: a small Mask2Former on a Swin, on scenes of typical materials.

accelerate launch --cpu --num_processes 1 examples/train_panoptic.py --mixed-precision bf16 --output my-model
python examples/train_panoptic.py --evaluate hf_tokaccel/reference/mask2former-scenes
python examples/train_panoptic.py --size swin-t --mixed-precision bf16 --workers 8 --output mask2former-swin-t
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from hf_tokaccel.evaluation.panoptic.data import scene_segments
from hf_tokaccel.measure.metrics.panoptic import STEP, code, image_sums, metrics_from_sums, num_sums, segment_map
from hf_tokaccel.scenes import CLASS_NAMES, render_scenes
from hf_tokaccel.scenes._classes import NUM_STUFF
from hf_tokaccel.training.scenes import Task, parse_sized, parser, train_or_evaluate
from hf_tokaccel.training.segmentation import LABELS, MATERIALS

_LARGE = {"width": 96, "window": 8, "features": 256, "decoder_width": 256, "encoder_layers": 3, "queries": 100}
_LARGE |= {"layers": 6, "heads": 8, "mlp": 1024, "points": 4096, "image_size": 512, "lr": 5e-4, "warmup": 1000}
_LARGE |= {"stages": "256:32:12000,512:16:6000", "muon_lr": 0.02}
SIZES = {"swin-t": {**_LARGE, "third_stage": 6}, "swin-s": {**_LARGE, "third_stage": 18}}


def build_config(args: argparse.Namespace) -> Mask2FormerConfig:
    heads = [max(1, args.width * 2**i // args.head_width) for i in range(4)]
    backbone = SwinConfig(
        image_size=args.image_size,
        patch_size=4,
        embed_dim=args.width,
        depths=[2, 2, args.third_stage, 2],
        num_heads=heads,
        window_size=args.window,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=args.features,
        mask_feature_size=args.features,
        hidden_dim=args.decoder_width,
        encoder_layers=args.encoder_layers,
        encoder_feedforward_dim=2 * args.features,
        decoder_layers=args.layers + 1,  # as Mask2Former counts them, with the predictions before the first
        num_attention_heads=args.heads,
        dim_feedforward=args.mlp,
        num_queries=args.queries,
        train_num_points=args.points,
        no_object_weight=args.no_object,
        **LABELS,
    )


def build_model(args: argparse.Namespace) -> Mask2FormerForUniversalSegmentation:
    """Return an untrained model that also returns the predictions of its inner layers, which are trained too."""
    model = Mask2FormerForUniversalSegmentation(build_config(args))
    model.config.output_auxiliary_logits = True
    return model


def build_processor(side: int) -> Mask2FormerImageProcessor:
    return Mask2FormerImageProcessor(
        size={"height": side, "width": side},
        size_divisor=32,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        num_labels=len(CLASS_NAMES),
    )


def segments(batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return, per image, the masks (S, H, W) of its S segments as floats, and their classes (S,)."""
    codes = scene_segments(batch["labels"], batch["instances"])
    present = [image.unique() for image in codes]
    masks = [(image == own[:, None, None]).float() for image, own in zip(codes, present, strict=True)]
    return masks, [own // STEP for own in present]


def semantic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross entropy over classes, the rarer the heavier, plus Dice loss of each class as a mask of its own."""
    logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    truth = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).float()
    there = truth.sum(dim=(0, 2, 3))
    weights = (there / there.sum()).clamp(min=1e-3) ** -0.5
    chance = logits.sigmoid()
    dice = 1 - (2 * (chance * truth).sum(dim=(0, 2, 3)) + 1) / (chance.sum(dim=(0, 2, 3)) + there + 1)
    return F.cross_entropy(logits, labels, weight=weights) + dice[there > 0].mean()


def build_loss(args: argparse.Namespace) -> Callable[..., Tensor]:
    """Return Mask2Former's loss for all layers, but for the predictions before the first decoder layer.

    Those do not depend on the image but by its mask features, so that query k is made the semantic mask of class k:
    the backbone then learns from every pixel of every class at once, without waiting for the matching to settle.
    """
    config = build_config(args)
    weights = {"cross_entropy": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
    criterion = Mask2FormerLoss(config, weights)

    def loss(output, batch: dict[str, Tensor]) -> Tensor:
        # The loss samples points at random; by the batch alone, so that a resumed run draws the same ones.
        torch.manual_seed(int(batch["labels"].sum()) + args.seed)
        masks, classes = segments(batch)
        inner = list(output.auxiliary_logits)
        total = 0.0
        if args.semantic:
            first = inner.pop(0)["masks_queries_logits"][:, : len(CLASS_NAMES)]
            total = args.semantic * semantic_loss(first, batch["labels"])
        names = ("masks_queries_logits", "class_queries_logits")
        inner = [{name: layer[name].float() for name in names} for layer in inner]
        last = [output[name].float() for name in names]
        losses = criterion.to(masks[0].device)(*last, masks, classes, inner)
        return total + sum(w * v for name, w in weights.items() for k, v in losses.items() if f"loss_{name}" in k)

    return loss


def single_outputs(model: Mask2FormerForUniversalSegmentation, args: argparse.Namespace) -> None:
    """Leave the predictions of the inner layers out of the outputs again."""
    model.config.output_auxiliary_logits = None


@torch.no_grad()
def evaluate(model: nn.Module, split: str, seed: int, count: int, size: int, processor=None) -> dict:
    """Return panoptic, segmentation and recognition quality, of things and stuff alone too, and PQ of each class."""
    model.eval()
    device, classes = next(model.parameters()).device, len(CLASS_NAMES)
    processor = build_processor(size) if processor is None else processor
    sums = torch.zeros(num_sums(classes), dtype=torch.float64)
    for start in range(0, count, 16):
        batch = render_scenes(range(start, min(start + 16, count)), (size, size), split, seed, device, MATERIALS)
        images = list(batch.pixels.cpu())
        output = model(pixel_values=processor(images, return_tensors="pt")["pixel_values"].to(device))
        results = processor.post_process_panoptic_segmentation(
            output, label_ids_to_fuse=set(range(NUM_STUFF)), target_sizes=[(size, size)] * len(images)
        )
        for result, truth in zip(results, scene_segments(batch.labels, batch.instances), strict=True):
            codes = {s["id"]: code(s["label_id"], s["id"]) for s in result["segments_info"]}
            sums += image_sums(segment_map(result["segmentation"], codes), truth, classes)
    scores = metrics_from_sums(sums, [i >= NUM_STUFF for i in range(classes)])
    of_class = zip(CLASS_NAMES, scores.pop("pq_of").tolist(), strict=True)
    per_class = {name: round(value, 3) for name, value in of_class if value == value}  # NaN: in none of the scenes
    return {name: round(value.item(), 4) for name, value in scores.items()} | {"pq_of": per_class}


def main() -> None:
    sizes = {"head-width": 32, "features": 64, "encoder-layers": 1, "decoder-width": 64}
    sizes |= {"queries": 40, "points": 1024, "third-stage": 6, "window": 6}
    arguments = parser(__doc__, "96:16:800,192:8:950", "outputs/train_panoptic", sizes)
    arguments.add_argument("--no-object", type=float, default=0.1, help="weight of queries that match no segment")
    arguments.add_argument(
        "--semantic", type=float, default=5.0, help="weight of the semantic masks before the decoder; 0 for none"
    )
    arguments.set_defaults(width=32, layers=3, heads=4, mlp=256, lr=2e-3, muon_lr=0.03, warmup=100)
    args = parse_sized(arguments, SIZES)
    if args.queries < len(CLASS_NAMES):
        raise SystemExit(f"--queries {args.queries}: the {len(CLASS_NAMES)} classes need one each; e.g. --queries 40.")
    task = Task(
        build=build_model,
        loss=build_loss(args),
        evaluate=evaluate,
        processor=build_processor,
        materials=MATERIALS,
        finish=single_outputs,
        adamw=("sampling_offsets", "attention_weights", "relative_position_bias_table"),
    )
    train_or_evaluate(args, task, AutoModelForUniversalSegmentation)


if __name__ == "__main__":
    main()
