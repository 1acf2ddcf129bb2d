"""The rows of a table: clusters, and other ways to spend as many FLOPs.

Every rival is built here and nowhere else. A new one is a function `(subject, setting) -> Rival` and its name in
`RIVALS`; a table shows it once `EVALUATION` or `BENCH` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..auto import accelerate, accelerate_config
from ..checks import UserError
from ..hosts.config import family_of, stored_accel
from ..images import input_step
from ..measure.flops import count_gflops, gflops_of_shape
from ..measure.variant import Variant
from ..settings.clustering import TokenClusteringConfig
from ..settings.naming import group_name, setting_name
from .merging import merge_in_layers

POOLING = "grid pooling"


def _unchanged(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Rival:
    """A row: how it runs, and what a table says about it.

    Attributes:
        name: in the table.
        kind: `"dense"`, `"clusters"`, or a key of `RIVALS`.
        model: with the tensors of the dense model.
        make: the same of another dense model, such as one in another number format.
        group: rows of one group have similar GFLOPs.
        accel: setting of clusters or grid pooling.
        per_layer: tokens merged before each block.
        scale: of the input.
        step: what the sides of the scaled input are multiples of, in pixels.
    """

    name: str
    kind: str
    model: nn.Module
    make: Callable[[Any], nn.Module] = _unchanged
    group: int = 0
    accel: dict | None = None
    per_layer: int | None = None
    scale: float = 1.0
    step: int = 1

    @property
    def runs_dense(self) -> bool:
        """Whether the model is the dense one as it is, if on other images."""
        return self.make is _unchanged

    @property
    def variant(self) -> Variant:
        return Variant(self.name, self.model, self.scale, self.step)

    def of(self, base: nn.Module) -> Rival:
        """This row made of another dense model."""
        return replace(self, model=self.make(base))


@dataclass(frozen=True)
class Subject:
    """What rows are built of.

    Attributes:
        model: dense.
        size: (height, width) of its input in pixels.
        images: one (1, 3, height, width) to count FLOPs on; None counts on shapes alone, which a model that needs
            more than images does not allow.
    """

    model: PreTrainedModel
    size: tuple[int, int]
    images: Tensor | None = field(default=None, repr=False)
    _costs: dict[Variant, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _rows: dict[TokenClusteringConfig, Rival] = field(default_factory=dict, init=False, repr=False, compare=False)

    def gflops(self, rival: Rival) -> float:
        """Billion FLOPs of an image, each row counted once."""
        variant = rival.variant
        if variant not in self._costs:
            if self.images is None:
                self._costs[variant] = gflops_of_shape(variant.model, variant.size(*self.size))
            else:
                self._costs[variant] = count_gflops(variant, self.images)
        return self._costs[variant]

    def clustered(self, setting: TokenClusteringConfig) -> Rival:
        """The row of a setting, built once."""
        if setting not in self._rows:
            self._rows[setting] = clusters(self, setting)
        return self._rows[setting]


def dense(subject: Subject) -> Rival:
    return Rival("dense", "dense", subject.model)


def clusters(subject: Subject, setting: TokenClusteringConfig, kind: str = "clusters") -> Rival:
    """Clusters as a setting says; with `iterations=0` they are averages over a grid.

    Args:
        kind: what its name begins with.

    Raises:
        ValueError: the model cannot be accelerated, or the setting does not fit.
    """
    model = accelerate(subject.model, setting, subject.size)
    # The model's family has filled in what the setting leaves open.
    accel = stored_accel(model.config)
    resolved = TokenClusteringConfig.from_dict(accel)
    # Pooling is what the name of its kind says already.
    label = setting_name(
        replace(resolved, iterations=TokenClusteringConfig.iterations) if kind == POOLING else resolved
    )
    return Rival(f"{kind} {label}", kind, model, lambda base: accelerate(base, accel), accel=accel)


def grid_pooling(subject: Subject, setting: TokenClusteringConfig) -> Rival:
    """Averages over the grid of a setting in place of clusters, rebuilt as it says.

    Raises:
        ValueError: adaptive clusters have no grid.
    """
    if setting.adaptive:
        raise UserError("adaptive clusters have no grid")
    return clusters(subject, replace(setting, iterations=0), POOLING)


def resized(subject: Subject, steps: int) -> Rival:
    """The dense model on smaller images, with a shorter side of so many patches (or windows, or whatever it needs)."""
    step = input_step(subject.model.config)
    found = Rival("", "lower resolution", subject.model, scale=steps / (min(subject.size) // step), step=step)
    height, width = found.variant.size(*subject.size)
    return replace(found, name=f"lower resolution {height}x{width}")


def lower_resolution(subject: Subject, setting: TokenClusteringConfig) -> Rival:
    """The dense model at the input size whose cost is nearest to that of a setting.

    Raises:
        ValueError: there is none below the full size, or the model accepts no other size (some raise RuntimeError).
    """
    target = subject.gflops(subject.clustered(setting))
    steps, most = steps_at(subject, target)
    if steps == most:
        raise UserError(f"its {target:.2f} GFLOPs are nearest to those of the full resolution")
    return resized(subject, steps)


def steps_at(subject: Subject, gflops: float) -> tuple[int, int]:
    """Patches of the shorter side at which the dense model costs nearest to so much, and those of the full size."""
    most = min(subject.size) // input_step(subject.model.config)
    return nearest(lambda steps: subject.gflops(resized(subject, steps)), 1, most, gflops), most


def merged(subject: Subject, per_layer: int, expansion: str = "nearest") -> Rival:
    """Token merging, so many tokens fewer after each block, copied back or with their change added (`"delta"`).

    Raises:
        ValueError: the model cannot be accelerated, or its blocks need a grid of tokens.
    """

    def make(base: PreTrainedModel) -> PreTrainedModel:
        return merge_in_layers(base, per_layer, expansion)

    label = "" if expansion == "nearest" else f", {expansion}"
    name = f"token merging {per_layer} per layer{label}"
    return Rival(name, f"token merging{label}", make(subject.model), make, per_layer=per_layer)


def token_merging(subject: Subject, setting: TokenClusteringConfig, expansion: str = "nearest") -> Rival:
    """Token merging at as many tokens per block as bring its cost nearest to that of a setting.

    Raises:
        ValueError: see `merged`; or merging nothing is nearest.
    """
    target = subject.gflops(subject.clustered(setting))
    host = accelerate_config(subject.model.config, None).accel_host()
    height, width = family_of(host).accel_grid(host, subject.size)

    @cache
    def row(count: int) -> Rival:
        return merged(subject, count, expansion) if count else dense(subject)

    subject.gflops(row(1))  # Says so where the model cannot.
    count = nearest(lambda count: subject.gflops(row(count)), height * width // 2, 0, target)
    if count == 0:
        raise UserError(f"its {target:.2f} GFLOPs are nearest to those without merging")
    return row(count)


def nearest(cost: Callable[[int], float], cheapest: int, dearest: int, target: float) -> int:
    """The integer between two whose cost, which grows from the one to the other, is nearest to a target."""
    cost = cache(cost)
    low, high = cheapest, dearest
    while abs(high - low) > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    return min((low, high), key=lambda value: abs(cost(value) - target))


RIVALS: dict[str, Callable[[Subject, TokenClusteringConfig], Rival]] = {
    "grid pooling": grid_pooling,
    "lower resolution": lower_resolution,
    "token merging": token_merging,
    "token merging, delta": partial(token_merging, expansion="delta"),
}
# What stands beside each group of settings: by kind the settings that it is built for, as places in the group.
# In an evaluation the plainest and the best expansion are pooled: what the clusters add must show beside what the
# expansion adds. Of the benchmark agreement is a side matter, and every row costs minutes.
EVALUATION = {
    "grid pooling": (0, -1),
    "lower resolution": (-1,),
    "token merging": (-1,),
    "token merging, delta": (-1,),
}
ALIKE = 0.05  # how far costs of one group may lie apart
BENCH = {"grid pooling": (0,), "lower resolution": (0,), "token merging": (0,), "token merging, delta": (0,)}


def rivals_of(
    subject: Subject, settings: Sequence[TokenClusteringConfig], beside: Mapping[str, tuple[int, ...]]
) -> tuple[list[Rival], list[str]]:
    """Rows of a table: dense, then for each grid and schedule its settings and what stands beside them.

    Args:
        subject: dense model and its input.
        settings: of the clustered rows.
        beside: kinds of `RIVALS`, such as `EVALUATION`; none for clusters alone.

    Returns:
        The rows, and a sentence without a full stop for each rival that the model cannot run.

    Raises:
        ValueError: the model cannot be accelerated, or a setting does not fit.
    """
    rows, notes, groups = [dense(subject)], [], _grouped(subject, settings)
    for number, (name, members) in enumerate(groups.items(), start=1):
        found = [subject.clustered(setting) for setting in members]
        missing: dict[str, list[str]] = {}
        for kind, places in beside.items():
            try:
                # Beside a grid stands what is built for a grid.
                built_for = [setting for setting in members if not setting.adaptive] or members
                found += [RIVALS[kind](subject, s) for s in dict.fromkeys(built_for[place] for place in places)]
            except (ValueError, RuntimeError) as error:  # Models with a fixed input size raise either.
                missing.setdefault(str(error).rstrip("."), []).append(kind)
        notes += [f"No {' or '.join(kinds)} beside {name}: {error}" for error, kinds in missing.items()]
        rows += [replace(row, group=number) for row in found]
    return rows, notes


def _grouped(subject: Subject, settings: Sequence[TokenClusteringConfig]) -> dict[str, list[TokenClusteringConfig]]:
    """Settings by schedule; adaptive clusters join the grid that costs about as much, if there is one."""
    groups: dict[str, list[TokenClusteringConfig]] = {}
    for setting in settings:
        groups.setdefault(group_name(setting), []).append(setting)
    grids = {name: members for name, members in groups.items() if not members[0].adaptive}
    for name, members in list(groups.items()) if grids else ():
        if members[0].adaptive:
            cost = subject.gflops(subject.clustered(members[0]))
            near = {other: subject.gflops(subject.clustered(grid[-1])) / cost for other, grid in grids.items()}
            other = min(near, key=lambda other: abs(near[other] - 1))
            if abs(near[other] - 1) < ALIKE:
                groups[other] += groups.pop(name)
    return groups
