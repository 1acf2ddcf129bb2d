"""What every table shares: rows, their check against the published value, and our model's own count."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_tokaccel.evaluation.speed import count_gflops

TOLERANCE = 1e-3

Terms = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One published number.

    Attributes:
        name: model or data set.
        size: (height, width) of the input in pixels.
        published: billions, in the table's own unit.
        alpha: as the paper's table prints it; None for the baseline.
        accel: what this row sets of our configuration; None for the baseline.
        images: of a clip, whose published value counts them all.
    """

    name: str
    size: tuple[int, int]
    published: float
    alpha: int | None = None
    accel: dict[str, Any] | None = None
    images: int = 1


@dataclass(frozen=True)
class Checked:
    """A row and its value by the closed form, billions in the table's unit."""

    row: Row
    computed: float

    @property
    def difference(self) -> float:
        """Relative to the published value."""
        return self.computed / self.row.published - 1

    @property
    def fits(self) -> bool:
        return abs(self.difference) <= TOLERANCE


@dataclass(frozen=True)
class Table:
    """A published table and how its numbers come about.

    Attributes:
        title: of the table.
        unit: what one of the published units is.
        convention: Markdown: what is counted, and where that is known from.
        alpha: how the table's alpha translates to our setting.
        rows: those published; a baseline comes before the rows that are compared with it.
        terms: multiply-adds (and element-wise operations, where these count) of a row, by name.
        model: our accelerated model of a row; called under the meta device.
        model_note: Markdown: what a reader should know of that model.
        factor: the table's unit per multiply-add.
    """

    title: str
    unit: str
    convention: str
    alpha: str
    rows: tuple[Row, ...]
    terms: Callable[[Row], Terms]
    model: Callable[[Row], nn.Module]
    model_note: str
    factor: int = 1

    def total(self, terms: Terms) -> float:
        """Billions in the table's unit."""
        return self.factor * sum(terms.values()) / 1e9

    def check(self) -> list[Checked]:
        return [Checked(row, self.total(self.terms(row))) for row in self.rows]

    def loose_terms(self) -> list[str]:
        """Terms that the published values do not pin: without any one of them, every row still fits."""
        counted = [(row, self.terms(row)) for row in self.rows]
        names = dict.fromkeys(name for _, terms in counted for name in terms)
        return [
            name for name in names if all(Checked(row, self.total({**terms, name: 0})).fits for row, terms in counted)
        ]


def schedule(row: Row, tokens: int, depth: int) -> tuple[int, list[int]]:
    """Clusters of a plain ViT (as many as tokens in the baseline), and the length of the sequence in every block."""
    if row.accel is None:
        return tokens, [tokens + 1] * depth
    full, clusters = row.accel["cluster_after"], math.prod(row.accel["cluster_grid"])
    return clusters, [tokens + 1] * full + [clusters + 1] * (depth - full)


def on_fake_tensors(build: Callable[[], nn.Module], size: tuple[int, int], count: Callable[..., Any]) -> Any:
    """`count(model, images)` with a model and one image that have shapes only, as on a CPU: no weight is allocated.

    Args:
        build: gives the model; called under the meta device.
        size: (height, width) in pixels.
    """
    with torch.device("meta"):
        model = build().eval()
    # Not built as fake at once: some constructors read values, which fake tensors do not have.
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count(model.to_empty(device="cpu"), torch.empty(1, 3, *size))


def flops(build: Callable[[], nn.Module], size: tuple[int, int]) -> float:
    """GFLOPs of a model on one image as `torch.utils.flop_counter` counts them: 2 per multiply-add."""
    return on_fake_tensors(build, size, count_gflops)
