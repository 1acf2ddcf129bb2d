"""DPT hybrid: ResNetV2 stem of 3, 4 and 9 blocks, ViT-B/16 and convolutional decoder."""

import functools
import math

import torch
from torch import nn
from transformers import DPTConfig

import hf_tokaccel as ta
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.models.dpt import TokAccelDPTForDepthEstimation

from .table import Row, Table, Terms, on_fake_tensors, released_row, schedule

PATCH, WIDTH, HEADS, DEPTH = 16, 768, 12, 12


def config() -> DPTConfig:
    """The architecture of dpt-hybrid-midas, which the KITTI and NYUv2 checkpoints share."""
    return DPTConfig(
        is_hybrid=True,
        image_size=384,
        backbone_out_indices=[2, 5, 8, 11],  # the first two levels come from the stem, whatever stands here
        neck_hidden_sizes=[256, 512, 768, 768],
        reassemble_factors=[1, 1, 1, 0.5],
    )


def build(row: Row) -> nn.Module:
    """Our model for an image that is not square, which transformers' DPT hybrid refuses in two places."""
    model = TokAccelDPTForDepthEstimation(ta.accelerate_config(config(), row.setting, row.size))
    model.dpt.embeddings.image_size = row.size  # a check only: position embeddings are resized in any case
    grid = [side // PATCH for side in row.size]
    model.neck.register_forward_pre_hook(lambda _, arguments: (arguments[0], *grid))
    return model


@functools.cache
def around_the_blocks(size: tuple[int, int]) -> Terms:
    """Stem, readout, decoder and head, counted on the architecture."""
    return on_fake_tensors(lambda: build(Row("", size, 0.0)), size, _count_around)


def _count_around(model: nn.Module, images: torch.Tensor) -> Terms:
    aten = torch.ops.aten
    # Doubled as the others are: flop_counter's unit is 2 per multiply-add.
    elements = {
        aten.native_group_norm: lambda shape, *_, **__: 2 * math.prod(shape),
        aten.upsample_bilinear2d: lambda *_, out_shape, **__: 2 * 4 * math.prod(out_shape),
    }
    with torch.inference_mode(), flop_counter(elements) as counter:
        model(images)
    counts = counter.get_flop_counts()
    encoder = counts[f"{type(model).__name__}.dpt.encoder"]

    def outside(*operators: object) -> float:
        return sum(counts["Global"][operator] - encoder.get(operator, 0) for operator in operators) / 2

    return {
        "convolutions and readout of stem, decoder and head": outside(aten.convolution, aten.addmm),
        "bilinear resizing, 4 per element": outside(aten.upsample_bilinear2d),
        "GroupNorms of the stem, 1 per element": outside(aten.native_group_norm),
    }


def terms(row: Row) -> Terms:
    tokens = math.prod(row.size) // PATCH**2
    clusters, lengths = schedule(row, tokens, DEPTH)
    pairs = sum(length**2 for length in lengths)
    elements = WIDTH * sum(lengths)
    result = {
        **around_the_blocks(row.size),
        "linear layers of the blocks": 12 * WIDTH * elements,
        "attention products": 2 * WIDTH * pairs,
        "attention scaling, 1 per score": HEADS * pairs,
        "LayerNorms of the blocks, 1 per element": 2 * elements,
        "last LayerNorm, 1 per element": WIDTH * lengths[-1],
    }
    if row.accel:
        squares = (tokens + clusters) * WIDTH
        distances = squares + 2 * tokens * clusters  # the products in them are an einsum, which the counter skips
        result |= {
            "clustering: weighted means": 5 * tokens * clusters * WIDTH,
            "clustering: element-wise products": clusters * WIDTH + 6 * distances,
        }
    return result


TABLE = Table(
    title="DPT hybrid",
    unit="1e9 operations, 2 per multiply-add (whole model; every counted operation is doubled, element-wise ones too)",
    convention=(
        "Stem, readout, decoder and head are counted on the architecture by `torch.utils.flop_counter` with two more "
        "operators, bilinear resizing and GroupNorm. The weighted mean of the clustering counts as the dense product "
        "that was run; its distances do not (an operator that the counter does not know), nor does the hard-label "
        "gather, but the element-wise products around them do."
    ),
    alpha="Alpha is the 0-based block after which tokens are clustered: cluster_after = alpha + 1.",
    rows=(
        Row("KITTI", (352, 1216), 810.0),
        released_row("KITTI", 723.4, "dpt-kitti-28x28-after-7"),
        released_row("KITTI", 631.8, "dpt-kitti-20x20-after-5"),
        released_row("KITTI", 613.6, "dpt-kitti-16x16-after-5"),
        Row("NYUv2", (480, 640), 560.2),
        released_row("NYUv2", 504.2, "dpt-nyuv2-24x24-after-7"),
        released_row("NYUv2", 439.2, "dpt-nyuv2-16x16-after-5"),
        released_row("NYUv2", 395.0, "dpt-nyuv2-14x14-after-3"),
    ),
    terms=terms,
    model=build,
    model_note=(
        "`TokAccelDPTForDepthEstimation` with window 5, 5 iterations and expansion `nearest`. Transformers' own DPT "
        "hybrid takes square images only: for this count its size check is set to the table's input and its neck is "
        "told the token grid. The clustered blocks and every layer around them are those that run."
    ),
    factor=2,
)
