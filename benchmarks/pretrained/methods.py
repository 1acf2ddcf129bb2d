"""What is compared: one function for each method, from the judge to the rows of its sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

import hf_tokaccel as ta
from hf_tokaccel import TokenClusteringConfig
from hf_tokaccel.hosts.blocks import Encoder
from hf_tokaccel.images import input_step
from hf_tokaccel.rivals import build
from hf_tokaccel.rivals.build import Rival
from hf_tokaccel.tuning.encoder import describe_encoder

from .schedules import SHARES, counts_of, grid_for, merged_for, share_of
from .subject import Judge

Size = tuple[int, int]
SMALLEST = 0.55  # of the side, of lower resolutions
# Released settings that are searched: shares of the blocks before clustering, and temperatures in units of the mean
# squared distance between tokens there, beside "auto".
STARTS, TEMPERATURES = (1 / 12, 2 / 12, 4 / 12, 6 / 12), (5.0, 20.0, 80.0)


@dataclass(frozen=True)
class Row:
    """One way to run the backbone.

    Attributes:
        method: whose front it belongs to.
        rival: how it runs.
        share: of the dense blocks' FLOPs, in closed form.
    """

    method: str
    rival: Rival
    share: float


@dataclass(frozen=True)
class Field:
    """What rows are made of.

    Attributes:
        judge: the dense backbone and its images.
        encoder: FLOPs of its blocks.
        subject: makes rivals.
        shares: of the blocks' FLOPs, that each method has rows for.
    """

    judge: Judge
    encoder: Encoder
    subject: build.Subject
    shares: tuple[float, ...] = SHARES
    _distances: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, judge: Judge, shares: tuple[float, ...] = SHARES) -> Field:
        size = judge.size
        return cls(judge, describe_encoder(judge.model.config, size), build.Subject(judge.model, size), shares)

    def after(self, share: float) -> int:
        """Blocks of such a share of the depth, at least one."""
        return max(1, round(share * len(self.encoder.blocks)))

    def clustered(self, method: str, setting: TokenClusteringConfig, counts: list[int | None]) -> Row:
        return Row(method, self.subject.clustered(setting), share_of(self.encoder, counts))

    def distance(self, after: int) -> float:
        """Mean squared distance between two patch tokens of an image after so many blocks."""
        if after not in self._distances:
            count = self.judge.grid[0] * self.judge.grid[1]
            with torch.inference_mode():
                output = self.judge.model(pixel_values=self.judge.images[:4], output_hidden_states=True)
            tokens = output.hidden_states[after][:, -count:].float()
            self._distances[after] = 2 * (tokens - tokens.mean(1, keepdim=True)).square().sum(-1).mean().item()
        return self._distances[after]


def lower_resolution(field: Field) -> Iterator[Row]:
    """The dense model on smaller images, at all sizes that patches allow; its features are resized."""
    step = input_step(field.judge.model.config)
    most = min(field.judge.size) // step
    for steps in range(most - 1, round(SMALLEST * most) - 1, -1):
        rival = build.resized(field.subject, steps)
        encoder = describe_encoder(field.judge.model.config, rival.variant.size(*field.judge.size))
        yield Row("lower resolution", rival, encoder.flops / field.encoder.flops)


def _on_grids(field: Field, method: str, after: int, **values) -> Iterator[Row]:
    for share in field.shares:
        grid = grid_for(field.encoder, after, share)
        if grid is not None:
            setting = TokenClusteringConfig(cluster_after=after, cluster_grid=grid, **values)
            counts = counts_of(field.encoder, (after,), (grid[0] * grid[1],))
            yield field.clustered(method, setting, counts)


def released(field: Field) -> Iterator[Row]:
    """The soft sum of the paper with this package's defaults, after a third of the blocks."""
    yield from _on_grids(field, "released", field.after(1 / 3), expansion="soft")


def released_searched(field: Field) -> Iterator[Row]:
    """The same with its start and its temperature searched; the best on these very photographs count."""
    for after in sorted({field.after(share) for share in STARTS}):
        temperatures = ("auto", *(round(t / field.distance(after), 9) for t in TEMPERATURES))
        for temperature in temperatures:
            values = {"expansion": "soft", "inverse_temperature": temperature}
            yield from _on_grids(field, "released, searched", after, **values)


def grid_recommended(field: Field) -> Iterator[Row]:
    """Grid clusters as this package recommended them before adaptive ones: change added, normalized tokens."""
    for share in field.shares:
        values = {"expansion": "delta", "similarity_on": "normalized"}
        found = ta.for_speedup(field.judge.model.config, field.judge.size, 1 / share, **values)
        height, width = found.cluster_grid
        counts = counts_of(field.encoder, (found.cluster_after,), (height * width,))
        yield field.clustered("grid, recommended", found, counts)


def grid_pooling(field: Field) -> Iterator[Row]:
    """Averages over a grid, their change added to the tokens."""
    yield from _on_grids(field, "grid pooling, change added", field.after(2 / 12), iterations=0, expansion="delta")


def token_merging(field: Field) -> Iterator[Row]:
    """Token Merging before every block, as `hf_tokaccel.rivals.merging` has it."""
    for share in field.shares:
        merged = merged_for(field.encoder, share)
        if merged is not None:
            left = [
                max(1, field.judge.grid[0] * field.judge.grid[1] - merged * (i + 1))
                for i in range(len(field.encoder.blocks))
            ]
            yield Row("token merging", build.merged(field.subject, merged), share_of(field.encoder, left))


METHODS: tuple[Callable[[Field], Iterator[Row]], ...] = (
    lower_resolution,
    released,
    released_searched,
    grid_recommended,
    grid_pooling,
    token_merging,
)
