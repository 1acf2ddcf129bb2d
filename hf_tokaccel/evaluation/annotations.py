"""What the JSON files of data sets have in common: every entry is checked before anything computes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checks import UserError, brief, is_count

LARGEST_SIDE = 65535  # of an image in pixels, as JPEG has it


def is_id(value: Any) -> bool:
    """Whether it is a whole number or a text, which a dict takes as a key."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_side(value: Any) -> bool:
    """Whether it is the height or width of an image."""
    return is_count(value) and value <= LARGEST_SIDE


def is_file_name(value: Any) -> bool:
    """Whether it is a path that does not lead out of the folder which it is below."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    parts = value.replace("\\", "/").split("/")
    # Systems refuse longer names with an error of their own.
    return not Path(value).is_absolute() and ".." not in parts and all(len(part) < 256 for part in parts)


def check_entries(entries: list, key: str, needed: Mapping[str, Callable[[Any], bool]], path: Path) -> None:
    """Raises ValueError where an entry of a list, which a file has as `key`, lacks a field or has it of another kind.

    Args:
        entries: the list.
        key: its name.
        needed: what says of each field that is read whether its value is valid.
        path: of the file.
    """
    for number, entry in enumerate(entries):
        for name, valid in needed.items():
            if not isinstance(entry, dict) or name not in entry or not valid(entry[name]):
                raise UserError(f"{path}: entry {number} of {key!r} has no valid {name!r}: {brief(entry, 100)}")
