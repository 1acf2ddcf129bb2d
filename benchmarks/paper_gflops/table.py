"""What every table shares: rows, their check against the published value, and our model's own count."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.tuning.released import RELEASED

TOLERANCE = 1e-3

Terms = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One number of a table, published or not.

    Attributes:
        name: model or data set.
        size: (height, width) of the input in pixels.
        published: billions, in the table's own unit; None where none was.
        alpha: as the paper's table prints it; None for the baseline.
        accel: the schedule of this row in our terms; None for the baseline.
        images: of a clip, whose published value counts them all.
        decimals: digits after the point of the published value, where it has too few to be held to 0.1 %.
        saved: published, in percent of the baseline, cut off to a whole number.
        source: where the published value is from, in a table whose values have several sources.
        ours: whether our model runs as this row counts; otherwise it is not counted.
        preset: of `hf_tokaccel.tuning.released`, which has the rest of the setting.
    """

    name: str
    size: tuple[int, int]
    published: float | None
    alpha: int | None = None
    accel: dict[str, Any] | None = None
    images: int = 1
    decimals: int | None = None
    saved: int | None = None
    source: str = ""
    ours: bool = True
    preset: str = ""

    @property
    def setting(self) -> dict[str, Any] | None:
        """The whole setting; None for the baseline."""
        return self.accel and {**RELEASED[self.preset].others, **self.accel}


def released_row(name: str, published: float, preset: str, images: int = 1) -> Row:
    """The row of a preset."""
    found = RELEASED[preset]
    return Row(name, found.image_size, published, found.alpha, found.schedule, images, preset=preset)


@dataclass(frozen=True)
class Checked:
    """A row and its value by the closed form, billions in the table's unit.

    Attributes:
        row: of the table.
        computed: its value.
        base: the baseline's published value, or its computed one where none is published; for rows that say what was
            saved.
    """

    row: Row
    computed: float
    base: float | None = None

    @property
    def difference(self) -> float:
        """Relative to the published value."""
        return self.computed / self.row.published - 1

    @property
    def fits(self) -> bool:
        """Whether every published value of the row agrees; true where there is none."""
        return self._fits_value() and self._fits_saved()

    def _fits_value(self) -> bool:
        row = self.row
        if row.published is None or abs(self.difference) <= TOLERANCE:
            return True
        if row.decimals is None:
            return False
        # Some tables round and some cut off.
        digit = 0.1**row.decimals
        return -digit / 2 <= self.computed - row.published < digit

    def _fits_saved(self) -> bool:
        return self.row.saved is None or int(100 * (1 - self.computed / self.base)) == self.row.saved


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
        return self._check([(row, self.terms(row)) for row in self.rows])

    def _check(self, counted: list[tuple[Row, Terms]]) -> list[Checked]:
        lines, base = [], None
        for row, terms in counted:
            computed = self.total(terms)
            if row.accel is None:
                base = row.published or computed
            lines.append(Checked(row, computed, base))
        return lines

    def loose_terms(self) -> list[str]:
        """Terms that the published values do not pin: without any one of them, every row still fits."""
        counted = [(row, self.terms(row)) for row in self.rows]
        names = dict.fromkeys(name for _, terms in counted for name in terms)
        return [
            name
            for name in names
            if all(line.fits for line in self._check([(row, {**terms, name: 0}) for row, terms in counted]))
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
