"""The settings that a table compares by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ..auto import accelerate_config
from ..checks import UserError
from ..hosts.config import family_of
from ..settings.clustering import TokenClusteringConfig
from ..settings.naming import group_name
from ..tuning.encoder import describe_encoder
from ..tuning.recommended import AdaptiveRecipe, recipe_for, recommend


class Sweep(Protocol):
    """What is compared by default, as a task of the evaluation says it.

    Attributes:
        shares: of the layers before clustering and of the tokens' grid per side; with stages and windows those of the
            longest stage and of a window.
        variations: fields of `TokenClusteringConfig`, each with every one of the shares.
    """

    shares: Sequence[tuple[float, float]]
    variations: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Compared:
    """A `Sweep` of no task."""

    shares: Sequence[tuple[float, float]]
    variations: Sequence[dict[str, Any]]


# As the paper's settings on a ViT-L are; released, and what keeps most on the reference models.
CAREFUL_AND_BOLD = Compared(shares=((10 / 24, 0.7), (8 / 24, 0.5)), variations=({}, {"expansion": "delta"}))


def default_settings(model: nn.Module, image_size: tuple[int, int], task: Sweep) -> list[TokenClusteringConfig]:
    """The settings that a task compares by default, for a model with a vision transformer, plain or with windows.

    Where the model allows them, recommended adaptive clusters follow the grids of each share, of the same FLOPs.

    Args:
        model: Dense model.
        image_size: Size of its input in pixels, (height, width).
        task: Says which shares of layers and grid, from careful to bold, and which variations of each.

    Raises:
        ValueError: The model cannot be accelerated.
    """
    try:
        accelerated = accelerate_config(model.config, None)
        host = accelerated.accel_host()
    except ValueError as error:
        raise UserError(
            f"no default settings are known for this {model.config.model_type!r} model; name one, for example --accel "
            f"cluster_after=4,cluster_grid=12x12, or --accel none for the dense model alone ({error})"
        ) from error
    first, layers, tokens, largest = _clustered_part(host, image_size)
    # Only some decoders run on clusters, so that they could also not do so.
    decodes = accelerated.accel_decodes_clusters
    variations = [variation for variation in task.variations if decodes or "decode_clusters" not in variation]
    recipe, encoder, settings = recipe_for(model.config), describe_encoder(model.config, image_size), []
    for layer_share, grid_share in task.shares:
        grid = tuple(min(max(round(n * grid_share), 1), most) for n, most in zip(tokens, largest, strict=True))
        after = first + min(max(round(layers * layer_share), 1), layers - 1)
        settings += [
            TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **variation) for variation in variations
        ]
        if isinstance(recipe, AdaptiveRecipe):
            found = recommend(encoder, recipe, encoder.flops / encoder.accelerated(settings[-1]), {})
            settings += [found] if found is not None else []
    return settings


Grid = tuple[int, int]


def _clustered_part(host, image_size: tuple[int, int]) -> tuple[int, int, Grid, Grid]:
    """Part of a transformer that is clustered: layers before it, its layers, tokens clustered together, most clusters.

    It is the longest stage, or the whole transformer where there are no stages.
    """
    family = family_of(host)
    if hasattr(family, "accel_stage_windows"):
        depths, windows = list(host.depths), family.accel_stage_windows(host)
        longest = depths.index(max(depths))
        side = windows[longest]
        return sum(depths[:longest]), depths[longest], (side, side), (side - 1, side - 1)
    tokens = family.accel_grid(host, image_size)
    return 0, host.num_hidden_layers, tokens, tokens


def settings_to_show(settings: Sequence[TokenClusteringConfig]) -> list[TokenClusteringConfig]:
    """One of the default settings for a picture: the last variation of the middle group."""
    groups = list(dict.fromkeys(group_name(setting) for setting in settings))
    middle = groups[len(groups) // 2]
    return [setting for setting in settings if group_name(setting) == middle][-1:]
