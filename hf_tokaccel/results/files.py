"""How results are written: JSON that a person can read, and of which a change shows in the rows that it touches."""

from __future__ import annotations

import json
import math
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..checks import UserError, first_line

WIDTH = 119
_SIX = Context(prec=6)


def read_json(path: str | Path, what: str = "file", advice: str = "") -> Any:
    """What a file of JSON holds.

    Args:
        path: of the file.
        what: it is, for the error.
        advice: what to do, which the error ends with.

    Raises:
        ValueError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} cannot be read as JSON ({first_line(error)}){advice}") from error


def write_json(path: str | Path, values: Any, *, exact: bool = False) -> None:
    """Writes a file of JSON: each row on a line, numbers to six significant digits, null where they are not finite.

    A row is an entry of a list; whatever else fits into a line of 119 characters has one, too.

    Args:
        path: of the file.
        values: of plain data.
        exact: keeps all digits, for what is read back and compared.
    """
    write_text(path, _text(_plain(values, exact), "") + "\n")


def json_line(values: Any) -> str:
    """The same on one line, for a file with a record on each."""
    return _line(_plain(values, exact=False))


def _plain(value: Any, exact: bool) -> Any:
    """What JSON can hold, such as null for a share of nothing."""
    if isinstance(value, dict):
        return {key: _plain(inner, exact) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, exact) for inner in value]
    if isinstance(value, float):
        return (value if exact else _six_digits(value)) if math.isfinite(value) else None
    return value


def _six_digits(value: float) -> float:
    exact = Decimal(repr(value))
    short = _SIX.plus(exact)
    if short.normalize().as_tuple().digits[-1] == 5 and abs(short - exact) > abs(exact) * Decimal("1e-12"):
        # A table would round this 5 a second time, maybe away from the value: the neighbour on the value's side.
        short = _SIX.next_toward(short, exact)
    return float(short)


def _text(value: Any, indent: str) -> str:
    whole, inner = _line(value), indent + " "
    holds_rows = isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
    if not holds_rows and (not isinstance(value, dict) or len(indent) + len(whole) <= WIDTH):
        return whole
    if holds_rows:
        return "[\n" + ",\n".join(inner + _line(entry) for entry in value) + f"\n{indent}]"
    entries = (f"{inner}{_line(str(key))}: {_text(entry, inner)}" for key, entry in value.items())
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
