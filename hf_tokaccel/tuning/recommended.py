"""The setting that did best so far, for a ratio of FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig

from ..auto import accelerate_config
from ..hosts.blocks import Encoder, Grid
from ..hosts.config import family_of
from ..settings.clustering import TokenClusteringConfig
from .encoder import check_speedup, choose_schedule, describe_encoder, find_head, unreachable
from .released import check_fields


@dataclass(frozen=True)
class Recipe:
    """What a recommended setting is made of.

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


# What did best on the reference models: docs/quality.md and docs/method_search.md. A last block at full resolution is
# not worth its cost there, most clearly on depth.
RECIPE = Recipe(fields={"expansion": "delta", "similarity_on": "normalized"}, last_blocks=0, share=(0.45, 0.8))
SPEEDUP = 1.5


def recommended(
    config: PreTrainedConfig, image_size: int | Grid, speedup: float = SPEEDUP, **overrides: Any
) -> TokenClusteringConfig:
    """The setting that did best so far for a ratio of FLOPs, from arithmetic alone as in `for_speedup`.

    Clusters carry their change back to the tokens (`expansion="delta"`), tokens are compared after the next
    LayerNorm where blocks have one before attention, and clusters are many and made early rather than few and
    late. From 1.7 times the speed on the blocks of Segmenter's decoder run on the clusters too. See
    docs/quality.md.

    Args:
        config: of the model, native or accelerated.
        image_size: side or (height, width) in pixels.
        speedup: dense over clustered FLOPs of the encoder, above 1, blocks at full resolution included.
        overrides: fields that differ; `reconstruct_after` is one.

    Raises:
        ValueError: when the model is not supported, a field does not fit it, or the ratio cannot be reached; it
            says the best that can.
    """
    check_speedup("recommended", speedup, check_fields(overrides))
    encoder = describe_encoder(config, image_size)
    setting = recommend(encoder, recipe_for(config), speedup, overrides)
    if setting is None:
        raise unreachable(encoder, image_size, speedup, overrides.get("reconstruct_after"))
    accelerate_config(config, setting, image_size)  # an override that does not fit is told now
    return setting


def recipe_for(config: PreTrainedConfig) -> Recipe:
    """The recipe as far as it makes sense for a model.

    Where blocks have no LayerNorm before attention, tokens are compared as they are. Classification reads no map of
    features, so nothing is gained by a last block at full resolution.
    """
    head = find_head(config)
    family = family_of(head.accel_host())
    chosen = dict(RECIPE.fields)
    if chosen.get("similarity_on", "tokens") not in family.accel_similarities:
        chosen["similarity_on"] = family.accel_similarities[0]
    classifies = any("Classification" in name for name in getattr(config, "architectures", None) or ())
    last = 0 if classifies else RECIPE.last_blocks
    return replace(RECIPE, fields=chosen, last_blocks=last, decodes=head.accel_decodes_change)


def recommend(
    encoder: Encoder, recipe: Recipe, speedup: float, overrides: dict[str, Any]
) -> TokenClusteringConfig | None:
    """The setting of a recipe for a ratio of the FLOPs of an encoder; None where it cannot be reached.

    Of the last blocks as many are left at full resolution as the recipe says and the ratio allows; none at bold ratios
    and where a decoder runs on the clusters.
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

    def resolve(self, config: PreTrainedConfig, image_size: int | Grid) -> TokenClusteringConfig:
        return recommended(config, image_size, self.speedup, **self.overrides)
