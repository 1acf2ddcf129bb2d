"""The setting that did best so far, for a ratio of FLOPs."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..auto import accelerate_config
from ..checks import UserError, as_pair
from ..hosts.blocks import Encoder, Grid
from ..hosts.config import family_of
from ..settings.adaptive import GRID_ONLY
from ..settings.clustering import TokenClusteringConfig
from .encoder import check_speedup, choose_schedule, describe_encoder, find_head, unreachable
from .released import check_fields
from .whole import whole_flops


@dataclass(frozen=True)
class Recipe:
    """What a recommended setting on a grid is made of.

    Attributes:
        fields: of the setting.
        last_blocks: of the clustered span that run at full resolution.
        share: of the side of the token grid that clusters keep, where all blocks before `reconstruct_after` run on
            them, and what is added to it, times the share of these blocks that come before clustering.
        bold: speed from which a decoder that can runs on the clusters, and no last block at full resolution.
        decodes: whether the model has such a decoder.
    """

    fields: dict[str, Any]
    last_blocks: int
    share: tuple[float, float]
    bold: float = 1.7
    decodes: bool = False


@dataclass(frozen=True)
class AdaptiveRecipe:
    """What a recommended setting of adaptive clusters is made of.

    Attributes:
        fields: of the setting.
        steps: where they come in the clustered span, as shares of its blocks; each leaves the same share of clusters.
        bold_steps: likewise, from the ratio of the blocks' FLOPs on that `bold` is.
        bold: see there.
        most: tokens that are matched all with all; more are matched in tiles.
        tile: side of these.
    """

    fields: dict[str, Any]
    steps: tuple[float, ...]
    bold_steps: tuple[float, ...]
    bold: float
    most: int = 4096
    tile: int = 16


# What did best on the reference models, among grids: docs/quality.md and docs/method_search.md. A last block at full
# resolution is not worth its cost there, most clearly on depth.
RECIPE = Recipe(fields={"expansion": "delta", "similarity_on": "normalized"}, last_blocks=0, share=(0.45, 0.8))
# What did best on a real checkpoint: docs/pretrained.md. With several steps one round each is enough, and more steps
# gain where few clusters are left.
ADAPTIVE = AdaptiveRecipe(
    fields={"round_share": 0.5},
    steps=tuple(twelfth / 12 for twelfth in (1, 3, 5, 7, 9)),
    bold_steps=tuple(twelfth / 12 for twelfth in (0, 1, 2, 3, 4, 5, 6, 8, 10)),
    bold=1.8,
)
SPEEDUP = 1.5


def recommended(
    model: PreTrainedModel | PreTrainedConfig,
    image_size: int | Grid | None = None,
    speedup: float = SPEEDUP,
    **overrides: Any,
) -> TokenClusteringConfig:
    """The setting that did best so far for a ratio of FLOPs, from arithmetic alone.

    Where a model can run on clusters of free shape, these are adaptive clusters in several steps; else a grid of
    clusters that carry their change back to the tokens (`expansion="delta"`). See docs/pretrained.md and
    docs/quality.md. A field that only a grid has, such as `neighbors`, chooses a grid.

    Args:
        model: a supported model, native or accelerated, or its configuration.
        image_size: side or (height, width) in pixels; None takes the configuration's.
        speedup: dense over clustered FLOPs of the whole model, above 1, for one image; of models that need texts too,
            of their vision encoder's blocks. Heads and decoders are not accelerated, so their share limits it.
        overrides: fields that differ; `reconstruct_after` is one.

    Raises:
        ValueError: when the model is not supported, a field does not fit it, or the ratio cannot be reached; it
            says the best that can.
    """
    check_speedup("recommended", speedup, check_fields(overrides))
    config = getattr(model, "config", model)
    size = own_image_size(config) if image_size is None else as_pair(image_size)
    encoder, recipe = describe_encoder(config, size), recipe_for(config, overrides)
    whole = whole_flops(_with_class(config, model), size) or encoder.flops
    rest = whole - encoder.flops
    left = whole / speedup - rest
    # Rounded, so that a bold ratio is one by whatever way it was found.
    setting = None if left <= 0 else recommend(encoder, recipe, round(encoder.flops / left, 9), overrides)
    if setting is None:
        raise unreachable(encoder, size, speedup, overrides.get("reconstruct_after"), rest)
    accelerate_config(config, setting, size)  # an override that does not fit is told now
    return setting


def own_image_size(config: PreTrainedConfig) -> Grid:
    """(height, width) in pixels that a configuration names.

    Raises:
        ValueError: when it names none.
    """
    host = find_head(config).accel_host()
    size = getattr(host, "image_size", None) or getattr(config, "image_size", None)
    if size is None:
        raise UserError(
            f"image_size=None is not valid: the configuration of {config.model_type!r} names no image size; give the "
            "one that your images have, for example image_size=512."
        )
    return as_pair(size)


def _with_class(config: PreTrainedConfig, model: Any) -> PreTrainedConfig:
    """The configuration with the class of a model in `architectures`, so that its head counts."""
    if model is config:
        return config
    config = copy.copy(config)
    config.architectures = [type(model).__name__]
    return config


def recipe_for(config: PreTrainedConfig, overrides: Collection[str] = ()) -> Recipe | AdaptiveRecipe:
    """The recipe as far as it makes sense for a model, with these fields chosen already.

    Where blocks have no LayerNorm before attention, tokens are compared as they are. Classification reads no map of
    features, so nothing is gained by a last block at full resolution.
    """
    head = find_head(config)
    host = head.accel_host()
    family = family_of(host)
    if family.accel_adaptive(host) and not set(overrides) & {*GRID_ONLY, "mask_shift"}:
        return ADAPTIVE
    chosen = dict(RECIPE.fields)
    if chosen.get("similarity_on", "tokens") not in family.accel_similarities:
        chosen["similarity_on"] = family.accel_similarities[0]
    classifies = any("Classification" in name for name in getattr(config, "architectures", None) or ())
    last = 0 if classifies else RECIPE.last_blocks
    return replace(RECIPE, fields=chosen, last_blocks=last, decodes=head.accel_decodes_change)


def recommend(
    encoder: Encoder, recipe: Recipe | AdaptiveRecipe, speedup: float, overrides: dict[str, Any]
) -> TokenClusteringConfig | None:
    """The setting of a recipe for a ratio of the FLOPs of an encoder's blocks; None where it cannot be reached."""
    if isinstance(recipe, AdaptiveRecipe):
        return _recommend_adaptive(encoder, recipe, speedup, overrides)
    return _recommend_grid(encoder, recipe, speedup, overrides)


def _recommend_adaptive(
    encoder: Encoder, recipe: AdaptiveRecipe, speedup: float, overrides: dict[str, Any]
) -> TokenClusteringConfig | None:
    """Each step leaves the same share, the largest with which the ratio is reached."""
    start, end = encoder.longest()
    end = min(end, overrides.get("reconstruct_after") or end)
    steps = recipe.bold_steps if speedup >= recipe.bold else recipe.steps
    starts = sorted({min(end - 1, start + round(step * (end - start))) for step in steps})
    height, width = encoder.blocks[start].grid
    tile = recipe.tile if height * width > recipe.most else None
    fields = {"tile": tile, **recipe.fields, **overrides}

    def leaving(share: float) -> TokenClusteringConfig:
        shares = tuple(max(round(share ** (step + 1), 4), 1e-4) for step in range(len(starts)))
        return TokenClusteringConfig(cluster_after=tuple(starts), clusters=shares, **fields)

    def cost(share: float) -> float:
        setting = leaving(share)
        return encoder.accelerated(setting) + encoder.matching(setting)

    low, high = 0.3, 0.999
    if encoder.flops < speedup * cost(low):
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if encoder.flops >= speedup * cost(middle) else (low, middle)
    return leaving(low)


def _recommend_grid(
    encoder: Encoder, recipe: Recipe, speedup: float, overrides: dict[str, Any]
) -> TokenClusteringConfig | None:
    """Of the last blocks as many are left at full resolution as the recipe says and the ratio allows.

    None are at bold ratios and where a decoder runs on the clusters.
    """
    start, end = encoder.longest()
    bold = speedup >= recipe.bold
    early = range(0 if bold else recipe.last_blocks, 0, -1)
    ends = [*(end - count for count in early if end - count > start), None]
    if overrides.get("decode_clusters"):
        ends = [None]
    if "reconstruct_after" in overrides:
        ends = [overrides["reconstruct_after"]]
    for until in ends:
        found = choose_schedule(encoder, speedup, until, recipe.share)
        if found is not None:
            after, grid = found
            decodes = {"decode_clusters": True} if recipe.decodes and bold and until is None else {}
            chosen = {**recipe.fields, **decodes, **overrides, "reconstruct_after": until}
            return TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **chosen)
    return None


@dataclass(frozen=True)
class Recommended:
    """A recommended setting that waits for its model, as a command line names one.

    Attributes:
        speedup: see `recommended`.
        overrides: likewise.
    """

    speedup: float = SPEEDUP
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Before a model is loaded.
        check_speedup("recommended", self.speedup, check_fields(self.overrides))

    def resolve(
        self, model: PreTrainedModel | PreTrainedConfig, image_size: int | Grid | None
    ) -> TokenClusteringConfig:
        return recommended(model, image_size, self.speedup, **self.overrides)
