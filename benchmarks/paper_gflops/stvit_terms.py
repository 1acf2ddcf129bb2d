"""Closed forms of STViT and STViT-R: what their layers multiply, and what the counter adds for normalisation."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from .table import Row, Terms

PATCH, VIT_WIDTHS = 16, {"T": 192, "S": 384, "B": 768}
SWIN_PATCH, WINDOW, SWIN_WIDTHS, SWIN_DEPTHS = 4, 7, {"T": 96, "S": 96, "B": 128}, {"T": 6, "S": 18, "B": 18}
LABELS, VIT_DEPTH = 1000, 12
# What a window of STViT-R reads, a side: image tokens in the two generation layers, semantic tokens in the recovery.
CLASSIFIER_KEYS, DETECTOR_KEYS, RECOVERY_KEYS = 10, (14, 21), 27


@dataclass(frozen=True, kw_only=True)
class SemanticRow(Row):
    """One number about a model with semantic tokens, or about its baseline.

    Attributes:
        model: letter of the size.
        projected: where STViT-R projects keys and values: once per `"window"` that reads a token, as the released
            code does, or once per `"token"`, as ours.
        dense: whether this is the backbone for detection.
    """

    model: str
    projected: Literal["window", "token"] = "token"
    dense: bool = False


class _Count(Counter[str]):
    """The terms of a row, filled layer by layer."""

    def norm(self, elements: int) -> None:
        self["LayerNorms, 5 per element"] += 5 * elements

    def layer(
        self,
        queries: int,
        keys: int,
        channels: int,
        *,
        context: int = 0,
        padded: int | None = None,
        project_padding: bool = True,
    ) -> None:
        """One block: attention and MLP on `queries` tokens.

        Args:
            queries: tokens.
            keys: that each of them reads.
            channels: of a token.
            context: tokens that keys and values are projected of besides; 0 for self-attention.
            padded: tokens in whole windows, which the products run on.
            project_padding: whether the padding of the windows is projected, too.
        """
        scored = padded or queries
        attended = scored if project_padding else queries
        linear = 2 * attended + 2 * (context or attended) + 8 * queries
        self["linear layers of the blocks"] += linear * channels**2
        self["attention products"] += 2 * scored * keys * channels
        self.norm((2 * queries + context) * channels)

    def conv_stem(self, sides: list[int], channels: int) -> None:
        """Two convolutions with stride 2 and their BatchNorms, which the counter saw in training."""
        tokens, half = math.prod(sides), channels // 2
        self["patch embedding"] += 4 * tokens * 27 * half + tokens * 9 * half * channels
        self["BatchNorms of the patch embedding, 5 per element"] += 5 * (4 * tokens * half + tokens * channels)

    def patch_stem(self, tokens: int, channels: int) -> None:
        self["patch embedding"] += 3 * SWIN_PATCH**2 * tokens * channels
        self.norm(tokens * channels)

    def merging(self, tokens: int, channels: int) -> None:
        """Four tokens become one of twice the channels; `tokens` remain."""
        self["patch merging"] += 8 * tokens * channels**2
        self.norm(4 * tokens * channels)

    def head(self, tokens: int, channels: int) -> None:
        self.norm(tokens * channels)
        self["classifier"] += channels * LABELS


def vit_terms(row: SemanticRow) -> Terms:
    """DeiT with a class token, and without one as STViT-DeiT."""
    count, channels, tokens = _Count(), VIT_WIDTHS[row.model], math.prod(row.size) // PATCH**2
    count["patch embedding"] = 3 * PATCH**2 * tokens * channels
    if row.accel is None:
        for _ in range(VIT_DEPTH):
            count.layer(tokens + 1, tokens + 1, channels)
        count["classifier"] = channels * LABELS
        return count
    base, generation, semantic = (
        row.accel["base_layers"],
        row.accel["generation_layers"],
        math.prod(row.accel["token_grid"]),
    )
    for _ in range(base):
        count.layer(tokens, tokens, channels)
    _generate(count, generation, semantic, tokens, channels)
    for _ in range(VIT_DEPTH - base - generation):
        count.layer(semantic, semantic, channels)
    count["classifier"] = channels * LABELS
    return count


def _generate(count: _Count, layers: int, semantic: int, tokens: int, channels: int, first: int = 0) -> None:
    """Generation layers over the whole map; the later ones read the semantic tokens, too.

    Args:
        first: layers that the caller has counted.
    """
    for index in range(first, layers):
        keys = tokens + (semantic if index else 0)
        count.layer(semantic, keys, channels, context=keys)


def swin_terms(row: SemanticRow) -> Terms:
    """Swin, plain STViT-Swin and STViT-R-Swin, as classifiers or as backbones with four outputs."""
    count, accel = _Count(), row.accel or {}
    channels, sides = SWIN_WIDTHS[row.model], [side // SWIN_PATCH for side in row.size]
    if accel.get("stem") == "conv":
        count.conv_stem(sides, channels)
    else:
        count.patch_stem(math.prod(sides), channels)
    tokens = math.prod(sides)
    for stage, depth in enumerate((2, 2, SWIN_DEPTHS[row.model], 2)):
        if accel and not accel.get("recover") and stage == 2:
            return _plain_stages(count, row, sides, channels, depth)
        tokens = math.prod(sides)
        if accel and stage == 2:
            _units(count, row, sides, channels, depth)
        else:
            for _ in range(depth):
                _window_block(count, sides, channels)
        if row.dense:
            count.norm(tokens * channels)
        if stage < 3:
            sides = [math.ceil(side / 2) for side in sides]
            count.merging(math.prod(sides), channels)
            channels *= 2
    if not row.dense:
        count.head(tokens, channels)
    return count


def _windows(sides: list[int]) -> int:
    return math.prod(math.ceil(side / WINDOW) for side in sides)


def _window_block(count: _Count, sides: list[int], channels: int) -> None:
    count.layer(math.prod(sides), WINDOW**2, channels, padded=_windows(sides) * WINDOW**2)


def _plain_stages(count: _Count, row: SemanticRow, sides: list[int], channels: int, depth: int) -> Terms:
    """Stages 3 and 4 of STViT-Swin, where image tokens are dropped on the way."""
    accel, tokens, windows = row.accel, math.prod(sides), _windows(sides)
    own, base, generation = math.prod(accel["token_grid"]), accel["base_layers"], 2
    for _ in range(base):
        _window_block(count, sides, channels)
    semantic, keys = windows * own, accel.get("key_window", WINDOW) ** 2 + own
    # Layout B reads windows that overlap, and what the numbers say is that it projects each of them.
    count.layer(semantic, keys, channels, context=windows * keys)
    _generate(count, generation, semantic, tokens, channels, first=1)
    for _ in range(depth - base - generation):
        count.layer(semantic, semantic, channels)
    if accel.get("merging") == "linear":
        count["patch merging"] += 2 * semantic * channels**2
    else:
        semantic //= 4
        count.merging(semantic, channels)
    channels *= 2
    for _ in range(2):
        count.layer(semantic, semantic, channels)
    count.head(semantic, channels)
    return count


def _units(count: _Count, row: SemanticRow, sides: list[int], channels: int, depth: int) -> None:
    """Stage 3 of STViT-R: units of one base, two generation, two semantic and one recovery layer."""
    tokens, windows, own = math.prod(sides), _windows(sides), math.prod(row.accel["token_grid"])
    semantic, each = windows * own, row.projected == "window"
    if row.dense:
        reads = [side**2 for side in DETECTOR_KEYS]
        generation = [(keys, windows * keys if each else tokens) for keys in reads]
        keys = RECOVERY_KEYS**2
        recovery = {"keys": keys, "context": windows * keys if each else semantic}
        recovery |= {"padded": windows * WINDOW**2, "project_padding": each}
    else:
        keys = CLASSIFIER_KEYS**2 + own
        generation = [(keys, windows * keys if each else tokens + semantic), (tokens + semantic,) * 2]
        recovery = {"keys": semantic, "context": semantic}
    for _ in range(depth // 6):
        _window_block(count, sides, channels)
        for keys, context in generation:
            count.layer(semantic, keys, channels, context=context)
        count.layer(semantic, own, channels)
        count.layer(semantic, semantic, channels)
        count.layer(tokens, channels=channels, **recovery)


def terms(row: SemanticRow) -> Terms:
    """Multiply-adds and element-wise operations of one image, by name."""
    return vit_terms(row) if "DeiT" in row.name else swin_terms(row)
