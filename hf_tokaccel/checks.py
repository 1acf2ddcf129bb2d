"""Checks of what a user gives, and what their errors say."""

from __future__ import annotations

from typing import Any


def require(condition: bool, name: str, value: Any, allowed: str, example: Any) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} is not valid: it must be {allowed}, for example {name}={example!r}.")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return is_int(value) and value > 0


def as_grid(value: Any) -> Any:
    """A side means a square; lists come from JSON."""
    if is_int(value):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


def first_line(error: Exception) -> str:
    """What an error says first, without the advice on further lines."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
