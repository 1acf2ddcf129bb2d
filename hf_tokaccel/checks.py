"""Checks of what a user gives, and what their errors say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

EXPANSIONS = ("soft", "nearest", "delta")
NORMALIZATIONS = ("l2", "l1")


def require(condition: bool, name: str, value: Any, allowed: str, example: Any) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} is not valid: it must be {allowed}, for example {name}={example!r}.")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return is_int(value) and value > 0


def is_number(value: Any) -> bool:
    """Whether it is a finite number, for which a truth value does not stand."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def as_pair(value: Any) -> Any:
    """(height, width) of a side, which means a square, or of a list, which comes from JSON; all else as it is."""
    if is_int(value):
        return (value, value)
    return tuple(value) if isinstance(value, (list, tuple)) else value


# What both the settings and the functions of `clustering` take: each refuses a bad value in the same words.


def check_grid(name: str, value: Any, example: tuple[int, int] = (16, 16)) -> None:
    """Raises ValueError unless it is a pair of sides."""
    valid = isinstance(value, tuple) and len(value) == 2 and all(is_count(side) for side in value)
    require(valid, name, value, "two positive numbers (h, w), or one for a square", example)


def check_iterations(value: Any) -> None:
    """Raises ValueError unless it is a number of clustering iterations."""
    require(is_int(value) and value >= 0, "iterations", value, "0 or more", 5)


def check_inverse_temperature(value: Any) -> None:
    """Raises ValueError unless it is a factor or `"auto"`."""
    positive = is_number(value) and value > 0
    require(positive or value == "auto", "inverse_temperature", value, "'auto' or a number above 0", "auto")


def check_window(name: str, value: Any) -> None:
    """Raises ValueError unless it is the side of a square with a cluster in its middle."""
    example = value + 1 if is_count(value) else 5
    require(is_count(value) and value % 2 == 1, name, value, "an odd number, 1 or more", example)


def check_neighbors(value: Any) -> None:
    """Raises ValueError unless it is a number of clusters or stands for all."""
    require(is_count(value) or (is_int(value) and value == -1), "neighbors", value, "-1 (all) or 1 or more", 20)


def check_choice(name: str, value: Any, choices: Sequence[str], example: str, *, optional: bool = False) -> None:
    """Raises ValueError unless it is one of these names."""
    allowed = "None or " * optional + f"one of {', '.join(choices)}"
    require(value in choices or (optional and value is None), name, value, allowed, example)


def first_line(error: Exception) -> str:
    """What an error says first, without the advice on further lines."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
