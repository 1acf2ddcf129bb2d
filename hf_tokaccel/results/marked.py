"""Places of a page that are written by a command: what stands between two marks; the text around them stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..checks import UserError


def marks(name: str) -> tuple[str, str]:
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def marked_places(text: str) -> set[str]:
    """Names of the places of a page."""
    return set(re.findall(r"<!-- begin: (\w+) -->", text))


def fill_marked(text: str, contents: Mapping[str, str]) -> str:
    """A page with its places filled anew.

    Raises:
        ValueError: the page has a place that there is nothing for.
    """
    if unknown := marked_places(text) - set(contents):
        raise UserError(f"there is nothing for the places {sorted(unknown)}: known are {', '.join(contents)}")
    for name in marked_places(text):
        begin, end = marks(name)
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = place.sub(lambda _, begin=begin, end=end, name=name: f"{begin}\n\n{contents[name]}\n\n{end}", text)
    return text


def write_marked(page: Path, contents: Mapping[str, str], title: str | None = None) -> None:
    """Fills the places of a file.

    Args:
        page: to be rewritten.
        contents: Markdown by the name of its place.
        title: of a page that is made where there is none, with all places in it.
    """
    if title is not None and not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join([f"# {title}", "", *(mark for name in contents for mark in marks(name)), ""])
    else:
        text = page.read_text(encoding="utf-8")
    page.write_text(fill_marked(text, contents), encoding="utf-8")
