"""What every result is: plain data that is kept as JSON, and a table on the terminal and in Markdown."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from .files import write_json


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]], names: int = 1, remarks: int = 0) -> str:
    """A Markdown table whose first `names` and last `remarks` columns are text and the others numbers."""
    rule = ["---"] * names + ["---:"] * (len(headings) - names - remarks) + ["---"] * remarks
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))


@dataclass(frozen=True)
class Line:
    """A line of a table: its cells, on a terminal a style of rich, and whether a section ends with it."""

    cells: Sequence[str]
    style: str | None = None
    ends_section: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table in words, for a terminal and for Markdown.

    Attributes:
        headings: of the columns.
        lines: below them.
        names: columns at the left that are text; the others are numbers.
        title: over it, on a terminal.
        notes: below it, sentences without a full stop.
        about: sentences of the same kind that come before those in Markdown, which nothing else surrounds.
    """

    headings: Sequence[str]
    lines: Sequence[Line]
    names: int = 1
    title: str | None = None
    notes: Sequence[str] = ()
    about: Sequence[str] = ()

    def to_markdown(self) -> str:
        table = markdown_table(self.headings, [line.cells for line in self.lines], self.names)
        said = [*self.about, *self.notes]
        return f"{table}\n\n{'. '.join(said)}.\n" if said else f"{table}\n"


class Report(ABC):
    """A result, a dataclass of plain data."""

    @abstractmethod
    def sheet(self) -> Sheet:
        """Its table."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From `to_dict`, or what JSON made of it."""

    def save(self, path: str | Path) -> None:
        """Writes JSON, with null for numbers that are not finite, such as a share of nothing."""
        write_json(path, self.to_dict(), exact=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Where:
    """Where numbers come from, as phrases for the foot of a table.

    Attributes:
        device: processor or GPU.
        threads: of the processor.
        versions: of torch and Transformers.
        commit: with a remark where the tree differed from it; empty where there is none.
    """

    device: str
    threads: str
    versions: str
    commit: str

    @classmethod
    def of(cls, environment: dict, changed: bool | None = None) -> Where:
        """From what `describe_environment` gave.

        Args:
            environment: machine, versions and commit.
            changed: whether what was measured differed from the commit; None asks the whole tree.
        """
        machine, versions, git = (environment.get(key) for key in ("machine", "versions", "git"))
        if changed is None:
            changed = bool(git) and git["dirty"]
        return cls(
            machine["processor"] if machine["device"] == "cpu" else machine["device"],
            f"threads {machine['threads']}",
            f"torch {versions.get('torch')}, transformers {versions.get('transformers')}",
            f"commit {git['commit'][:10]}{' with changes' if changed else ''}" if git else "",
        )
