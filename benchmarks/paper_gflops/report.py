"""Prints a table as Markdown."""

import textwrap
from typing import Any

from .table import TOLERANCE, Checked, Row, Table, flops

HEADINGS = (
    "input",
    "alpha",
    "our setting",
    "source",
    "published",
    "computed",
    "difference",
    "of dense",
    "our model, GFLOPs",
    "of dense",
)
TEXT = HEADINGS[:4]
SMALL = 20.0  # billions, below which three digits after the point are shown


def known_cells(line: Checked, dense: Checked) -> list[str]:
    """The part of a line that needs no model."""
    row = line.row
    setting = "dense" if row.accel is None else ", ".join(f"{key}={_text(value)}" for key, value in row.accel.items())
    difference = "" if row.published is None else f"{line.difference:+.3%}"
    return [
        f"{row.name}, {_text(row.size)}",
        "" if row.alpha is None else str(row.alpha),
        setting,
        row.source,
        _published(row),
        _billions(line.computed),
        difference + ("" if line.fits else " OFF"),
        f"{(row.published or line.computed) / (dense.row.published or dense.computed):.1%}",
    ]


def _published(row: Row) -> str:
    """As printed: the value, what was saved, or both."""
    value = row.published
    parts = [] if value is None else [f"{value}" if row.decimals is None else f"{value:.{row.decimals}f}"]
    return ", ".join([*parts, *([] if row.saved is None else [f"-{row.saved}%"])])


def _billions(value: float) -> str:
    return f"{value:.3f}" if value < SMALL else f"{value:.2f}"


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_dense(checked: list[Checked]) -> list[tuple[Checked, Checked]]:
    """Each line with the baseline above it."""
    pairs, dense = [], None
    for line in checked:
        dense = line if line.row.accel is None else dense
        pairs.append((line, dense))
    return pairs


def known_lines(table: Table) -> list[list[str]]:
    """What of the printed lines needs no model."""
    return _without_empty([known_cells(*pair) for pair in with_dense(table.check())], HEADINGS)[1]


def markdown(table: Table, checked: list[Checked]) -> str:
    """The whole section of a table; counts our model for every row that it stands for."""
    lines, baseline = [], 0.0
    for line, dense in with_dense(checked):
        cells = known_cells(line, dense)
        count = _our_count(table, line.row)
        baseline = count if line is dense else baseline
        lines.append([*cells, *(("", "") if count is None else (_billions(count), f"{count / baseline:.1%}"))])
    headings, lines = _without_empty(lines, HEADINGS)
    return "\n\n".join(
        [
            f"## {table.title}",
            wrap(f"Published unit: {table.unit}. {table.convention}"),
            wrap(table.alpha),
            _grid(headings, lines),
            wrap(f"Our model: {table.model_note}"),
            wrap(
                f"Terms that the published values do not pin (all rows stay within {TOLERANCE:.1%} without any one of "
                f"them): {'; '.join(table.loose_terms()) or 'none'}."
            ),
        ]
    )


def _our_count(table: Table, row: Row) -> float | None:
    """GFLOPs of our model, of all images of a clip."""
    if not row.ours:
        return None
    return row.images * flops(lambda: table.model(row), row.size)


def _without_empty(lines: list[list[str]], headings: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines without the columns that this table has no use for."""
    used = [index for index, cells in enumerate(zip(*lines, strict=True)) if any(cells)]
    return [headings[index] for index in used], [[cells[index] for index in used] for cells in lines]


def wrap(paragraph: str) -> str:
    return textwrap.fill(paragraph, 119, break_long_words=False, break_on_hyphens=False)


def _grid(headings: list[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    left = sum(heading in TEXT for heading in headings)

    def join(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < left else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join([join(headings), join(rule), *(join(cells) for cells in lines)])
