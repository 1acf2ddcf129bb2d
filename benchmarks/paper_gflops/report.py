"""Prints a table as Markdown."""

import textwrap
from typing import Any

from .table import TOLERANCE, Checked, Table, flops

HEADINGS = (
    "input",
    "alpha",
    "our setting",
    "published",
    "computed",
    "difference",
    "of dense",
    "our model, GFLOPs",
    "of dense",
)


def known_cells(line: Checked, dense: Checked) -> list[str]:
    """The part of a line that needs no model."""
    row = line.row
    setting = "dense" if row.accel is None else ", ".join(f"{key}={_text(value)}" for key, value in row.accel.items())
    return [
        f"{row.name}, {_text(row.size)}",
        "" if row.alpha is None else str(row.alpha),
        setting,
        f"{row.published}",
        f"{line.computed:.2f}",
        f"{line.difference:+.3%}" + ("" if line.fits else " OFF"),
        f"{row.published / dense.row.published:.1%}",
    ]


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_dense(checked: list[Checked]) -> list[tuple[Checked, Checked]]:
    """Each line with the baseline above it."""
    pairs, dense = [], None
    for line in checked:
        dense = line if line.row.accel is None else dense
        pairs.append((line, dense))
    return pairs


def markdown(table: Table, checked: list[Checked]) -> str:
    """The whole section of a table; counts our model for every row."""
    lines, baseline = [], 0.0
    for line, dense in with_dense(checked):
        count = line.row.images * flops(lambda row=line.row: table.model(row), line.row.size)
        baseline = count if line is dense else baseline
        lines.append([*known_cells(line, dense), f"{count:.2f}", f"{count / baseline:.1%}"])
    return "\n\n".join(
        [
            f"## {table.title}",
            wrap(f"Published unit: {table.unit}. {table.convention}"),
            wrap(table.alpha),
            _grid(lines),
            wrap(f"Our model: {table.model_note}"),
            wrap(
                f"Terms that the published values do not pin (all rows stay within {TOLERANCE:.1%} without any one of "
                f"them): {'; '.join(table.loose_terms()) or 'none'}."
            ),
        ]
    )


def wrap(paragraph: str) -> str:
    return textwrap.fill(paragraph, 119, break_long_words=False, break_on_hyphens=False)


def _grid(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(HEADINGS, *lines, strict=True)]
    left = 3  # columns of text

    def join(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < left else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join([join(list(HEADINGS)), join(rule), *(join(cells) for cells in lines)])
