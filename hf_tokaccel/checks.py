"""Checks of what a user gives, and what their errors say."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

EXPANSIONS = ("soft", "nearest", "delta")
NORMALIZATIONS = ("l2", "l1")
# Whole numbers beyond it wrap, or their doubles do, in the arithmetic of tensors: NaN without a word.
LARGEST = 2**31 - 1
COLDEST = 1e20  # inverse temperature; times squared distances it must stay within float32
# Not formatted where it is needed: Dynamo does not trace that with sizes of its own.
_TEMPERATURES = f"'auto' or a number above 0, {COLDEST:g} at most"


class UserError(ValueError):
    """What a user can put right, said in one line; the command line shows all else, our bugs, with a traceback."""


def require(condition: bool, name: str, value: Any, allowed: str, example: Any) -> None:
    if not condition:
        if isinstance(value, int) and abs(value) > LARGEST:
            allowed = f"{allowed}, and no number above {LARGEST}"
        raise UserError(f"{name}={brief(value)} is not valid: it must be {allowed}, for example {name}={example!r}.")


def brief(value: Any, length: int = 200) -> str:
    """A value as an error names it: not longer than a line."""
    if isinstance(value, int) and abs(value) >= 10**length:
        return "a number of too many digits"  # Python refuses to write out thousands.
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def nearest(name: Any, known: Iterable[Any]) -> str | None:
    """The known name that a misspelt one is nearest to; None where none is near."""
    names = {str(one).lower(): str(one) for one in known}
    found = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.6)
    return names[found[0]] if found else None


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """` (did you mean ...?)` for the nearest of the known names; nothing where none is near."""
    found = nearest(name, known)
    return "" if found is None else f" (did you mean {found}?)"


def is_int(value: Any) -> bool:
    """Whether it is a whole number that tensors can compute with, of Python or NumPy; a truth value is none."""
    return isinstance(value, (int, Integral)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_count(value: Any) -> bool:
    return is_int(value) and value > 0


def is_number(value: Any) -> bool:
    """Whether it is a finite number, for which a truth value does not stand."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        return False
    # Some whole numbers are larger than every float; others than Python's own compare in a type of theirs.
    value = value if isinstance(value, (int, float)) and not hasattr(value, "dtype") else float(value)
    return -sys.float_info.max <= value <= sys.float_info.max


def as_plain(value: Any) -> Any:
    """Python's numbers for those of NumPy, which JSON would not take, also in a list; all else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_plain, value))
    if isinstance(value, (int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def as_pair(value: Any) -> Any:
    """(height, width) of a side, which means a square, or of a list, which comes from JSON; all else as it is."""
    if is_int(value):
        return (as_plain(value), as_plain(value))
    return tuple(as_plain(value)) if isinstance(value, (list, tuple)) else value


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
    valid = (is_number(value) and 0 < value <= COLDEST) or (isinstance(value, str) and value == "auto")
    allowed = _TEMPERATURES
    require(valid, "inverse_temperature", value, allowed, "auto")


def check_window(name: str, value: Any) -> None:
    """Raises ValueError unless it is the side of a square with a cluster in its middle."""
    example = value + 1 if is_count(value) else 5
    require(is_count(value) and value % 2 == 1, name, value, "an odd number, 1 or more", example)


def check_neighbors(value: Any) -> None:
    """Raises ValueError unless it is a number of clusters or stands for all."""
    require(is_count(value) or (is_int(value) and value == -1), "neighbors", value, "-1 (all) or 1 or more", 20)


def check_choice(name: str, value: Any, choices: Sequence[str], example: str, *, optional: bool = False) -> None:
    """Raises ValueError unless it is one of these names."""
    is_name = isinstance(value, str)
    if (is_name and value in choices) or (optional and value is None):
        return  # before anything is compared: the functions of the method ask in every pass, and Dynamo in each graph
    allowed = "None or " * optional + f"one of {', '.join(choices)}"
    require(False, name, value, allowed, (nearest(value, choices) if is_name else None) or example)


def first_line(error: Exception) -> str:
    """What an error says first, without the advice on further lines."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def said_by(error: Exception) -> str:
    """What an error of another library says: some say no more than a key, so with its type."""
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
