"""Checks of the fields of adaptive clusters, beside those of a grid."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING

from ..checks import UserError, is_count, is_int, is_number, require

if TYPE_CHECKING:
    from .clustering import TokenClusteringConfig

# What decides how a grid of clusters is made and left, and what adaptive clusters have in its place.
GRID_ONLY = ("iterations", "inverse_temperature", "window", "neighbors", "neighbor_window", "normalization")
_ADAPTIVE_ONLY = ("round_share", "tile")


def falling(steps: int) -> tuple[float, ...]:
    """Shares of the tokens that so many steps leave, as an example."""
    return tuple(round(0.85 ** (step + 1), 2) for step in range(steps))


def check_clusters(setting: TokenClusteringConfig) -> None:
    """Raises ValueError where steps, counts and the fields of one kind of clusters do not go together."""
    grid, clusters, after = setting.cluster_grid, setting.clusters, setting.cluster_after
    if grid is None and clusters is None:
        raise UserError(
            "neither cluster_grid nor clusters is given: one of them says how many clusters there are, for example "
            "clusters=0.5 or cluster_grid=(16, 16)."
        )
    allowed = "None when cluster_grid is given: it is the alternative to a grid"
    require(grid is None or clusters is None, "clusters", clusters, allowed, None)
    _check_steps(after, several=clusters is not None)
    if clusters is None:
        _refuse_changed(setting, _ADAPTIVE_ONLY, "for a grid of clusters")
    else:
        _check_counts(clusters, after)
        _refuse_changed(setting, GRID_ONLY, "for adaptive clusters, which have no grid")
        expansion = setting.expansion
        allowed = "None, 'delta' or 'nearest' for adaptive clusters, where a token belongs to one"
        require(expansion != "soft", "expansion", expansion, allowed, "delta")
        shift = setting.mask_shift
        require(shift is None, "mask_shift", shift, "None for adaptive clusters, which have no grid to shift", None)
    share, tile, sized = setting.round_share, setting.tile, setting.size_attention
    require(is_number(share) and 0 < share <= 0.5, "round_share", share, "above 0 and at most 0.5", 0.2)
    valid = tile is None or (is_count(tile) and tile % 2 == 0)
    require(valid, "tile", tile, "None or an even number of tokens", 16)
    require(sized is None or isinstance(sized, bool), "size_attention", sized, "None, True or False", None)


def _check_steps(after: object, several: bool) -> None:
    steps = after if several and isinstance(after, tuple) else (after,)
    valid = len(steps) > 0 and all(is_int(step) and step >= 0 for step in steps)
    rising = valid and all(a < b for a, b in pairwise(steps))
    allowed = "a number of blocks, 0 or more" + ", or with clusters several that rise" * several
    example = (1, 3, 5, 7, 9) if several and isinstance(after, tuple) else 6
    if not several and isinstance(after, tuple):
        allowed += "; several steps need clusters in place of cluster_grid"
    require(rising, "cluster_after", after, allowed, example)


def _check_counts(clusters: object, after: object) -> None:
    given = clusters if isinstance(clusters, tuple) else (clusters,)
    steps = len(after) if isinstance(after, tuple) else 1
    example = falling(steps) if isinstance(after, tuple) else 0.5
    fits = len(given) == steps and isinstance(clusters, tuple) == isinstance(after, tuple)
    allowed = (
        "one number for one cluster_after" if not isinstance(after, tuple) else f"{steps} numbers, one for a step"
    )
    require(fits, "clusters", clusters, allowed, example)
    valid = all(is_count(c) or (isinstance(c, float) and is_number(c) and 0 < c <= 1) for c in given)
    allowed = "a share of the tokens, a float above 0 and up to 1.0, or a count, a whole number"
    require(valid, "clusters", clusters, allowed, example)
    falls = all(b <= a for a, b in pairwise(given) if type(a) is type(b))
    require(falls, "clusters", clusters, "no more than the step before left", example)


def _refuse_changed(setting: TokenClusteringConfig, names: tuple[str, ...], where: str) -> None:
    """A field that would do nothing is an error."""
    defaults = {field.name: field.default for field in fields(setting)}
    for name in names:
        value = getattr(setting, name)
        require(value == defaults[name], name, value, f"left at {defaults[name]!r} {where}", defaults[name])
