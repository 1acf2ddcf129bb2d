"""Mask2Former: the Swin-L backbone, on images of 1152 x 1152 pixels and on the clips of YouTubeVIS."""

import math
from collections import Counter

from torch import nn
from transformers import SwinConfig

import hf_tokaccel as ta
from hf_tokaccel.models.swin import TokAccelSwinBackbone

from .table import Row, Table, Terms, released_row

PATCH, WIDTH, WINDOW = 4, 192, 12
DEPTHS, HEADS = (2, 2, 18, 2), (6, 12, 24, 48)
# The released configurations of two rows, unlike what their published values imply.
SHIPPED = {
    "COCO panoptic": "mask2former-coco-panoptic-8x8-after-10",
    "COCO instance": "mask2former-coco-instance-8x8-after-12",
}


def terms(row: Row) -> Terms:
    """The closed form, of one image or of all the frames of a clip."""
    total: Counter[str] = Counter()
    sides, first = [side // PATCH for side in row.size], 0
    total["patch embedding"] = 3 * PATCH**2 * math.prod(sides) * WIDTH
    total["LayerNorm of the patch embedding, 5 per element"] = 5 * math.prod(sides) * WIDTH
    for stage, depth in enumerate(DEPTHS):
        channels, tokens = WIDTH * 2**stage, math.prod(sides)
        windows = math.prod(math.ceil(side / WINDOW) for side in sides)
        after = row.accel["cluster_after"] if row.accel else -1
        full = after - first if first <= after < first + depth else depth
        total.update(_blocks(full, channels, tokens, windows, WINDOW**2))
        if full < depth:
            clusters = math.prod(row.accel["cluster_grid"])
            total.update(_blocks(depth - full, channels, windows * clusters, windows, clusters))
            product = 2 * windows * WINDOW**2 * clusters * channels
            iterated = row.setting["iterations"] * product
            total["clustering: distances to all clusters of the window, dense weighted means"] += iterated
            total["reconstruction: distances, dense weighted sums"] += product
        total["LayerNorms of the outputs, 5 per element"] += 5 * tokens * channels
        first += depth
        if first < sum(DEPTHS):
            sides = [math.ceil(side / 2) for side in sides]
            total["patch merging"] += 8 * channels**2 * math.prod(sides)
            total["LayerNorms of the patch merging, 5 per element"] += 20 * channels * math.prod(sides)
    return {name: row.images * value for name, value in total.items()}


def _blocks(count: int, channels: int, tokens: int, windows: int, area: int) -> Terms:
    """So many blocks on windows of `area` tokens or clusters; attention runs on whole windows, padding included."""
    whole = windows * area
    return {
        "linear layers of the blocks": count * (4 * whole + 8 * tokens) * channels**2,
        "attention products": count * 2 * whole * area * channels,
        "LayerNorms of the blocks, 5 per element": count * 10 * tokens * channels,
    }


def config() -> SwinConfig:
    return SwinConfig(
        image_size=384,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=WINDOW,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def build(row: Row) -> nn.Module:
    return TokAccelSwinBackbone(ta.accelerate_config(config(), row.setting))


_2019, _2021 = "YouTubeVIS 2019, 28 frames", "YouTubeVIS 2021, 32 frames"
ROWS = (
    Row("Swin-L", (1152, 1152), 937),
    released_row("COCO panoptic", 663, "mask2former-coco-panoptic-8x8-after-9"),
    released_row("COCO instance", 705, "mask2former-coco-instance-8x8-after-11"),
    released_row("ADE20K panoptic", 769, "mask2former-ade20k-panoptic-8x8-after-14"),
    released_row("ADE20K semantic", 620, "mask2former-ade20k-semantic-8x8-after-7"),
    Row(_2019, (480, 832), 8957, images=28),
    released_row(_2019, 7631, "mask2former-youtubevis-2019-8x8-after-14", images=28),
    Row(_2021, (400, 640), 7159, images=32),
    released_row(_2021, 6253, "mask2former-youtubevis-2021-8x8-after-14", images=32),
)


def shipped(name: str) -> Row:
    """The row of a data set at the setting of its released configuration."""
    row = next(row for row in ROWS if row.name == name)
    return released_row(row.name, row.published, SHIPPED[name])


def _notes() -> str:
    return ", and ".join(
        f"that of {row.name} clusters before block {row.accel['cluster_after']}, which costs "
        f"{sum(terms(row).values()) / 1e9:.2f}"
        for row in map(shipped, SHIPPED)
    )


TABLE = Table(
    title="Mask2Former, Swin-L",
    unit="1e9 multiply-adds and 5 per element of a LayerNorm (backbone only; a clip is all its frames)",
    convention=(
        "Matrix products count as they are run, which in attention is on windows padded to 12 x 12 tokens. The "
        "clustering counts as distances to all clusters of a window and a dense weighted mean in each iteration, the "
        "reconstruction likewise; the last distances of the clustering, which only hard labels need, do not count. "
        "Softmax, GELU and biases do not count."
    ),
    alpha=(
        "The released code clusters before block L, 0-based over all stages, so cluster_after = L. Alpha is L + 1 in "
        "the COCO rows and ADE20K semantic, and L in the others: what the published values say. Two released "
        f"configurations differ from their row of the table: {_notes()}."
    ),
    rows=ROWS,
    terms=terms,
    model=build,
    model_note="`TokAccelSwinBackbone` with the iterations, window and neighbors of the released configurations.",
)
