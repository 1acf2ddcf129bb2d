"""Files and folders that are replaced whole: a process that dies in between leaves the old one or the new one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FRESH, OLD = ".new", ".old"


def write_text(path: str | Path, text: str) -> None:
    """Writes a file under another name, and renames it."""
    path = Path(path)
    fresh = path.with_name(path.name + FRESH)
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def versions(folder: Path) -> tuple[Path, Path, Path]:
    """Where a folder that `replace_folder` was to replace may be: in its place, or beside it."""
    return folder, folder.with_name(folder.name + FRESH), folder.with_name(folder.name + OLD)


def replace_folder(folder: Path, fresh: Path) -> None:
    """Puts a finished folder in the place of another, if there is one; one of the two is complete all the time."""
    old = versions(folder)[2]
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def move_files(source: Path, folder: Path, last: str) -> None:
    """Moves all files of a folder into another, where they replace those of the same names; one of them comes last."""
    for path in sorted(source.iterdir(), key=lambda path: (path.name == last, path.name)):
        os.replace(path, folder / path.name)
