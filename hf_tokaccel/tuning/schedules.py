"""Where clusters begin and how many there are, for a saving in FLOPs: what a search tries, from arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..hosts.blocks import Encoder, Grid
from ..settings.clustering import TokenClusteringConfig
from .redundancy import predicted_loss

LAST_STEP = 0.75  # of the clustered span: a later step has too few blocks left to pay for itself
Curves = dict[int, Sequence[tuple[float, float]]]


def most_promising(
    encoder: Encoder, curves: Curves, saved: float, fields: dict[str, Any], adaptive: bool, count: int
) -> list[TokenClusteringConfig]:
    """One step of clustering after those blocks where it should lose least.

    Args:
        encoder: whose longest span is clustered.
        curves: of `measure_redundancy`.
        saved: FLOPs.
        fields: of the settings.
        adaptive: whether clusters are of free shape, else on a grid.
        count: settings at most.
    """
    start, end = encoder.longest()
    guesses = []
    for after in range(start, end):
        height, width = encoder.blocks[after].grid
        if adaptive:
            setting = shrink(encoder, TokenClusteringConfig(cluster_after=after, clusters=0.5, **fields), saved)
            share = None if setting is None else setting.clusters
        else:
            grids = [g for g in encoder.grids(after) if encoder.flops - encoder.clustered(after, g) >= saved]
            grid = grids[-1] if grids else None
            setting = grid and TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **fields)
            share = grid and grid[0] * grid[1] / (height * width)
        if setting is not None:
            guesses.append((predicted_loss(curves[after], share), after, setting))
    return [setting for *_, setting in sorted(guesses, key=lambda guess: guess[:2])[:count]]


def in_steps(span: Grid, count: int, fields: dict[str, Any]) -> TokenClusteringConfig:
    """Adaptive clusters in so many steps, evenly over the first part of a span; `shrink` says how many clusters."""
    first, end = span
    last = first + max(1, round(LAST_STEP * (end - first)))
    places = (first + 1 + step * (last - first - 1) / max(count - 1, 1) for step in range(count))
    starts = tuple(sorted({min(round(place), end - 1) for place in places}))
    shares = tuple(0.9 ** (step + 1) for step in range(len(starts)))
    return TokenClusteringConfig(cluster_after=starts, clusters=shares, **fields)


def shrink(encoder: Encoder, setting: TokenClusteringConfig, saved: float) -> TokenClusteringConfig | None:
    """Adaptive clusters, as many as save so many FLOPs; shares of several steps keep their proportions.

    None where no number of clusters saves as much.
    """
    height, width = encoder.blocks[setting.starts[0]].grid
    tokens = height * width
    # A step that leaves all tokens has nothing to scale.
    shares = [min(count / tokens, 0.99) for count in setting.counts(tokens)]

    def at(power: float) -> TokenClusteringConfig:
        # Three digits, rounded down, so that names in tables say all of it.
        found = tuple(min(0.999, max(math.floor(1000 * share**power) / 1000, 0.001)) for share in shares)
        return replace(setting, clusters=found if isinstance(setting.cluster_after, tuple) else found[0])

    def saves(found: TokenClusteringConfig) -> bool:
        return encoder.flops - encoder.accelerated(found) - encoder.matching(found) >= saved

    low, high = -7.0, 5.0  # powers of two: of nearly all tokens, and of one
    if not saves(at(2**high)):
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if saves(at(2**middle)) else (middle, high)
    return at(2**high)
