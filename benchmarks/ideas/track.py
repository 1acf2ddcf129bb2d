"""A track that runs any schedule of resolutions, and the variations of clustering and reconstruction that were tried.

For plain transformers only. Nothing of this is part of the package: what won was moved there, in its own form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_tokaccel import TokenClusteringConfig, accelerate
from hf_tokaccel.functional import (
    ReconstructionPlan,
    cluster_tokens,
    plan_reconstruction,
    reconstruct_tokens,
)
from hf_tokaccel.hosts.track import TokenTrack

Grid = tuple[int, int]


@dataclass(frozen=True)
class Idea:
    """A variation.

    Attributes:
        grids: for each block the clusters that it runs on, None for all tokens.
        similarity_on: as in `TokenClusteringConfig`.
        detail: of a token that is kept beside the change of its clusters: 1 is `"delta"`, 0 is `"soft"`; `"growth"`
            scales it as the length of its clusters grew.
        gain: of the change of the clusters.
        keep_length: centroids get the mean length of their tokens.
        position: places of the tokens, in clusters, times this and times the spread of the keys, are compared too.
        same_plan: later clusterings pool by the plan of the first.
        neighbors: as in `TokenClusteringConfig`; `iterations` and `window` likewise.
        sharpness: what `"auto"` divides by the mean squared distance.
    """

    grids: tuple[Grid | None, ...]
    similarity_on: str = "normalized"
    detail: float | str = 1.0
    gain: float = 1.0
    keep_length: bool = False
    position: float = 0.0
    same_plan: bool = False
    neighbors: int = 20
    iterations: int = 5
    window: int = 5
    sharpness: float = 4.0


@dataclass
class _Level:
    grid: Grid
    tokens: Tensor
    centroids: Tensor
    plan: ReconstructionPlan


class IdeaTrack(TokenTrack):
    """Runs an idea; clusters may be clustered again, so that levels lie on a stack."""

    def __init__(self, *args: Any, idea: Idea, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.idea, self.levels, self.first = idea, [], None

    @property
    def grid(self) -> Grid:
        return self.levels[-1].grid if self.levels else self.layout.grid

    def before_layer(self, index: int, states: Tensor, norm: nn.Module | None = None) -> Tensor:
        if index == 0:
            self._record(0, states)
        goal = self.idea.grids[index] or self.layout.grid
        if goal != self.grid and (goal in self._grids() or goal[0] > self.grid[0]):
            states = self._raise(states, goal if goal in self._grids() else self.layout.grid)
        if goal != self.grid:
            states = self._lower(states, goal, norm)
        self.clustered = bool(self.levels)
        return states

    def after_layer(self, index: int, states: Tensor) -> Tensor:
        self.blocks_run += 1
        if index + 1 == self.depth and self.final:
            states = self._raise(states, self.layout.grid)
            self.clustered = False
        self._record(index + 1, states)
        return states

    def full(self, states: Tensor) -> Tensor:
        levels = list(self.levels)
        states = self._raise(states, self.layout.grid)
        self.levels = levels  # only a look: the blocks go on with the clusters
        return states

    def _grids(self) -> list[Grid]:
        return [self.layout.grid, *(level.grid for level in self.levels)]

    def _raise(self, states: Tensor, goal: Grid) -> Tensor:
        kept, refined = self.layout.split(states, self.grid)
        while self.grid != goal:
            refined = self._expand(self.levels.pop(), refined)
        return self.layout.join(kept, refined, goal)

    def _expand(self, level: _Level, refined: Tensor) -> Tensor:
        idea, plan = self.idea, level.plan
        before = reconstruct_tokens(level.centroids, plan)
        after = before + idea.gain * reconstruct_tokens(refined - level.centroids, plan)
        detail = idea.detail
        if detail == "growth":
            detail = after.norm(dim=-1, keepdim=True) / before.norm(dim=-1, keepdim=True)
        return after + detail * (level.tokens - before)

    def _lower(self, states: Tensor, goal: Grid, norm: nn.Module) -> Tensor:
        idea, grid = self.idea, self.grid
        kept, tokens = self.layout.split(states, grid)
        if idea.same_plan and self.first is not None and not self.levels:
            plan = self.first
            centroids = _pool(tokens, plan, goal[0] * goal[1])
        else:
            centroids, plan = self._cluster_as(tokens, grid, goal, norm)
        self.first = self.first or plan
        self.levels.append(_Level(goal, tokens, centroids, plan))
        return self.layout.join(kept, centroids, goal)

    def _cluster_as(
        self, tokens: Tensor, grid: Grid, goal: Grid, norm: nn.Module
    ) -> tuple[Tensor, ReconstructionPlan]:
        idea = self.idea
        keys = norm(tokens) if idea.similarity_on == "normalized" else tokens
        if idea.position:
            keys = _with_places(keys, grid, goal, idea.position)
        values = torch.cat((tokens, tokens.norm(dim=-1, keepdim=True)), -1) if idea.keep_length else tokens
        clusters = cluster_tokens(
            values, grid, goal, iterations=idea.iterations, inverse_temperature="auto", window=idea.window, keys=keys
        )
        centroids = clusters.centroids
        if idea.keep_length:
            centroids, lengths = centroids[..., :-1], centroids[..., -1:]
            centroids = centroids * lengths / centroids.norm(dim=-1, keepdim=True)
        plan = plan_reconstruction(
            tokens,
            centroids,
            neighbors=idea.neighbors,
            inverse_temperature="auto",
            normalization="l1",
            keys=keys,
            key_centroids=clusters.key_centroids,
        )
        return centroids, plan


def _pool(tokens: Tensor, plan: ReconstructionPlan, count: int) -> Tensor:
    """Means of the tokens by the weights of a plan, (B, count, C)."""
    weights = tokens.new_zeros(*tokens.shape[:2], count).scatter_(2, plan.indices, plan.weights.to(tokens.dtype))
    return weights.transpose(1, 2) @ tokens / weights.sum(1)[..., None].clamp(min=1e-6)


def _with_places(keys: Tensor, grid: Grid, goal: Grid, weight: float) -> Tensor:
    rows, columns = (torch.arange(n) * (m / n) for n, m in zip(grid, goal, strict=True))
    places = torch.cartesian_prod(rows, columns).to(keys)
    spread = (keys - keys.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()[:, None, None]
    return torch.cat((keys, weight * spread * places), -1)


_PLAIN = TokenClusteringConfig(cluster_after=0, cluster_grid=(1, 1), expansion="delta")


def run_idea(model: PreTrainedModel, idea: Idea) -> PreTrainedModel:
    """A model that runs an idea, with the parameters of `model`."""
    fast = accelerate(model, _PLAIN)
    for module in fast.modules():
        if getattr(module, "accel", None) is not None:
            module.accel_make_track = lambda *args, **kwargs: IdeaTrack(*args, idea=idea, **kwargs)
    return fast


@dataclass(frozen=True)
class Merging:
    """Token merging before every block.

    Attributes:
        per_layer: tokens fewer after each.
        expansion: `"nearest"` copies merged tokens back, `"delta"` adds their change to each token.
    """

    per_layer: int
    expansion: str = "nearest"
