"""Losses at equal speed, and what is to be shown of them.

Every method has a front of measured points: how many times as cheap as the dense model each is (by time or by FLOPs),
and its loss against the dense model. The dense model itself, once as cheap and without loss, is a point of every
front. Which points belong to it is decided by how far outputs are from the dense model's on the validation scenes, so
that no method gains by having more settings to pick from; the losses are those of the test scenes.

Between two neighbouring points of a front the loss is interpolated linearly in the ratio of times, so fronts need many
points: a line over a wide gap, from the dense model say, promises what no setting reaches. Beyond its cheapest point a
method reaches nothing. Below its dearest point the loss is that point's: it is faster than was asked for.

Intervals are percentiles of a bootstrap over images with the same draws for every row. The points of the fronts and
their speeds stay as they are, so the intervals say how far other images would move the losses, not what another choice
of settings or another run of the clock would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_tokaccel.measure.metrics.bootstrap import bootstrap, interval

TARGET = 0.4  # less loss than the best released setting
SPEEDS = tuple(round(1.2 + 0.1 * i, 1) for i in range(14))
POINTS = 100  # losses are in hundredths of the metric


@dataclass(frozen=True)
class Curve:
    """Front of a method.

    Attributes:
        cheapness: of its points, ascending: times as cheap as dense.
        losses: (points, 1 + draws) in hundredths of the metric; the first column is measured, the rest is resampled.
    """

    cheapness: tuple[float, ...]
    losses: Tensor

    def at(self, cheapness: float) -> Tensor | None:
        """Losses (1 + draws,) where the method is so many times as cheap as dense; None where it never is."""
        x = self.cheapness
        if cheapness > x[-1] + 1e-9:
            return None
        if cheapness <= x[0]:
            return self.losses[0]
        right = next(i for i, value in enumerate(x) if value >= cheapness - 1e-9)
        share = (cheapness - x[right - 1]) / (x[right] - x[right - 1])
        return torch.lerp(self.losses[right - 1], self.losses[right], min(share, 1.0))


def front(cheapness: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both, the dearest first.

    Raises:
        ValueError: no points, sequences of different length, or a number that is not finite.
    """
    if not cheapness or len(cheapness) != len(losses):
        raise ValueError(
            f"{len(cheapness)} ratios of cost and {len(losses)} losses are not valid: give one of each for every "
            "point, for example [1.0, 1.5] and [0.0, 0.2]."
        )
    for name, values in (("cheapness", cheapness), ("losses", losses)):
        bad = [v for v in values if not math.isfinite(v) or (name == "cheapness" and v <= 0)]
        if bad:
            allowed = "finite numbers above 0" if name == "cheapness" else "finite numbers"
            raise ValueError(f"{name} holds {bad[0]}: they must be {allowed}, for example 1.5.")
    best, chosen = math.inf, []
    for index in sorted(range(len(cheapness)), key=lambda i: (-cheapness[i], losses[i])):
        if losses[index] < best:
            best = losses[index]
            chosen.append(index)
    return chosen[::-1]


def make_curve(cheapness: Sequence[float], chosen_by: Sequence[float], losses: Tensor) -> Curve:
    """Front of a method's points together with the dense model.

    Args:
        cheapness: of its points.
        chosen_by: their differences to the dense output on the validation scenes.
        losses: (points, 1 + draws) on the test scenes.

    Raises:
        ValueError: see `front`; or losses for another number of points.
    """
    if len(losses) != len(cheapness):
        raise ValueError(f"losses of {len(losses)} points for {len(cheapness)} are not valid: give one for each.")
    cheapness, chosen_by = [1.0, *cheapness], [0.0, *chosen_by]
    losses = torch.cat([losses.new_zeros(1, losses.shape[1]), losses])
    members = front(cheapness, chosen_by)
    return Curve(tuple(cheapness[i] for i in members), losses[members])


def losses_of(
    sums: Tensor, metric: Callable[[Tensor], Tensor], more_is_better: bool, resamples: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Metric and loss of every row, measured and resampled.

    Args:
        sums: additive sums (rows, images, S), dense first; images without a valid label are left out.
        metric: from sums (..., S) to values (...).
        more_is_better: of the metric.
        resamples: draws of images with replacement, the same for every row.
        seed: of the draws.

    Returns:
        Values (rows, 1 + resamples) of the metric, and losses against dense in hundredths.
    """
    counted = sums[:, sums[0, :, -1] > 0]
    drawn = bootstrap(counted, resamples, seed) if resamples else counted.new_zeros(len(sums), 0, sums.shape[-1])
    values = metric(torch.cat([counted.sum(1, keepdim=True), drawn], dim=1))
    lost = values[:1] - values if more_is_better else values - values[:1]
    return values, POINTS * lost


def claims(curves: Mapping[str, Curve], speeds: Sequence[float] = SPEEDS) -> list[dict]:
    """One line for each speed: the loss of every method there, and ours against released and lower resolution.

    `reduction` is 1 - ours / released, None where the released loss is not above 0 with its whole interval; `met` says
    whether it is `TARGET` or more. `gain` is released - ours.

    Args:
        curves: by method; `"ours"` and `"released"` are needed.
        speeds: times as cheap as dense.

    Raises:
        ValueError: a method that is needed is missing.
    """
    missing = {"ours", "released"} - set(curves)
    if missing:
        raise ValueError(f"no curve of {', '.join(sorted(missing))}: the claim compares 'ours' with 'released'.")
    return [_claim({name: curve.at(speed) for name, curve in curves.items()}, speed) for speed in speeds]


def _claim(losses: Mapping[str, Tensor | None], speed: float) -> dict:
    ours, released, smaller = (losses.get(name) for name in ("ours", "released", "lower resolution"))
    line = {
        "speed": speed,
        "loss": {name: None if values is None else _stated(values) for name, values in losses.items()},
        "gain": None if ours is None or released is None else _stated(released - ours),
        "reduction": None,
        "met": None,
        "lower resolution better": None if ours is None or smaller is None else bool(smaller[0] < ours[0]),
        "lower resolution minus ours": None if ours is None or smaller is None else _stated(smaller - ours),
    }
    if ours is not None and released is not None and _measurable(released):
        line["reduction"] = _stated(1 - ours / released)
        line["met"] = line["reduction"]["value"] >= TARGET
    return line


def _measurable(losses: Tensor) -> bool:
    """Whether a loss is above 0 with its interval; a share of less would be a share of noise."""
    return bool(losses[0] > 0) and (len(losses) == 1 or interval(losses[1:])[0] > 0)


def _stated(values: Tensor) -> dict:
    ends = list(interval(values[1:])) if len(values) > 1 else None
    return {"value": values[0].item(), "interval": ends}


def spread(members: Sequence[int], cheapness: Sequence[float], most: int) -> list[int]:
    """At most so many of the members of a front, evenly spread over the logarithm of their cost; both ends stay."""
    if len(members) <= most:
        return list(members)
    logs = {i: math.log(cheapness[i]) for i in members}
    low, high = min(logs.values()), max(logs.values())
    chosen: list[int] = []
    for number in range(most):
        target = low + (high - low) * number / (most - 1)
        chosen.append(min((i for i in members if i not in chosen), key=lambda i: abs(logs[i] - target)))
    return [i for i in members if i in chosen]
