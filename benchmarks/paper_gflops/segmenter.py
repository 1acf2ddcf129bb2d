"""Segmenter: ViT-L/16 and mask transformer on ADE20K, Cityscapes and Pascal Context."""

import math

from torch import nn

import hf_tokaccel as ta
from hf_tokaccel.models.segmenter import SegmenterConfig, TokAccelSegmenterForSemanticSegmentation

from .table import Row, Table, Terms, released_row, schedule

PATCH, WIDTH, HEADS, DEPTH = 16, 1024, 16, 24
# Classes and layers of the mask transformer.
DATA = {"ADE20K": (150, 2), "Cityscapes": (19, 1), "Pascal Context": (60, 2)}
# What the published values imply; the released configurations search a window of 5.
CANDIDATES = 7**2


def terms(row: Row) -> Terms:
    classes, layers = DATA[row.name]
    tokens = math.prod(row.size) // PATCH**2
    clusters, lengths = schedule(row, tokens, DEPTH)
    pairs = sum(length**2 for length in lengths)
    elements = WIDTH * sum(lengths)
    joint = clusters + classes  # what the decoder sees: it runs on the clusters
    result = {
        "patch embedding with bias": (3 * PATCH**2 + 1) * tokens * WIDTH,
        "linear layers of the blocks": 12 * WIDTH * elements,
        "attention products": 2 * WIDTH * pairs,
        "softmax, 2 per score": 2 * HEADS * pairs,
        "query scaling, 1 per element": elements,
        "LayerNorms of the blocks, 2 per element": 4 * elements,
        "GELU, 2 per element": 8 * elements,
        "last LayerNorm, 2 per element": 2 * lengths[-1] * WIDTH,
        "decoder: projection": clusters * WIDTH**2,
        "decoder: linear layers": layers * 12 * joint * WIDTH**2,
        "decoder: LayerNorms and GELU": (layers * (4 + 8) + 2) * joint * WIDTH + 2 * clusters * classes,
    }
    if row.accel:
        pooled = clusters * WIDTH
        distances = CANDIDATES * tokens * (WIDTH + 2)
        result |= {
            "clustering: distances to 49 candidates": row.setting["iterations"] * distances,
            "clustering: dense weighted means": row.setting["iterations"] * (tokens + 1) * pooled,
            "clustering: pooling and labels": tokens * WIDTH + 2 * (tokens + clusters),
            "reconstruction: weighted sums of 20 neighbors": row.setting["neighbors"] * tokens * (WIDTH + 3),
            "reconstruction: squared norms": tokens * WIDTH + pooled,
        }
    return result


def config(row: Row) -> SegmenterConfig:
    classes, layers = DATA[row.name]
    return SegmenterConfig(
        image_size=row.size[0],
        patch_size=PATCH,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        decoder_num_hidden_layers=layers,
        num_labels=classes,
    )


def build(row: Row) -> nn.Module:
    return TokAccelSegmenterForSemanticSegmentation(ta.accelerate_config(config(row), row.setting))


TABLE = Table(
    title="Segmenter ViT-L/16",
    unit="1e9 multiply-adds and element-wise operations (encoder and mask transformer, one crop)",
    convention=(
        "Costs are charged by layer type: 2 per score for softmax, 2 per element for LayerNorm and GELU. The counter "
        "misses the attention products and the two last projections of the mask transformer, so the published values "
        "leave them out. The mask transformer runs on the clusters and its class logits are reconstructed, yet the "
        "reconstruction is charged as if it rebuilt features. What is charged for clustering and reconstruction is "
        "inferred from the published values: distances to 49 candidates (window 7; the released configurations have "
        "window 5), dense weighted means, and a reconstruction from 20 neighbors without its distances."
    ),
    alpha=(
        "Alpha is the number of full-resolution blocks, since the released code clusters after the 0-based block "
        "alpha - 1: cluster_after = alpha."
    ),
    rows=(
        Row("ADE20K", (640, 640), 658.98),
        released_row("ADE20K", 529.81, "segmenter-ade20k-28x28-after-16"),
        released_row("ADE20K", 443.84, "segmenter-ade20k-28x28-after-10"),
        released_row("ADE20K", 309.4, "segmenter-ade20k-20x20-after-8"),
        Row("Cityscapes", (768, 768), 995.6),
        released_row("Cityscapes", 840.9, "segmenter-cityscapes-32x32-after-18"),
        released_row("Cityscapes", 691.0, "segmenter-cityscapes-32x32-after-12"),
        released_row("Cityscapes", 529.64, "segmenter-cityscapes-24x24-after-10"),
        Row("Pascal Context", (480, 480), 338.7),
        released_row("Pascal Context", 251.2, "segmenter-pascal-context-20x20-after-14"),
        released_row("Pascal Context", 201.3, "segmenter-pascal-context-15x15-after-12"),
        released_row("Pascal Context", 161.0, "segmenter-pascal-context-15x15-after-8"),
    ),
    terms=terms,
    model=build,
    model_note=(
        "`TokAccelSegmenterForSemanticSegmentation` with the released configuration: window 5, 5 iterations, 20 "
        "neighbors, the decoder on the clusters."
    ),
)
