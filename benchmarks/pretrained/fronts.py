"""Errors between measured rows: what a method loses where it is so many times as cheap as the dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.quality.claim import front

LEAST = 1e-12  # of an error, which needs a logarithm


def error_at(cheapness: Sequence[float], errors: Sequence[float], wanted: float) -> float | None:
    """Error of a method where it is so many times as cheap as dense; None where no row of it is.

    Of its rows those count that no other beats in both. Between neighbours the logarithm of the error is linear in the
    cheapness. A method whose dearest row is cheaper than wanted does better than asked: that row counts.

    Args:
        cheapness: of the rows, times as cheap as dense.
        errors: of the rows.
        wanted: cheapness.
    """
    if not cheapness:
        return None
    members = front(cheapness, errors)
    x, y = [cheapness[i] for i in members], [math.log(max(errors[i], LEAST)) for i in members]
    if wanted > x[-1] + 1e-9:
        return None
    right = next(i for i, value in enumerate(x) if value >= wanted - 1e-9)
    if right == 0:
        return math.exp(y[0])
    share = min(1.0, (wanted - x[right - 1]) / (x[right] - x[right - 1]))
    return math.exp(y[right - 1] + share * (y[right] - y[right - 1]))
