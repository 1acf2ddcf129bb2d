"""Results as a table on the terminal and as Markdown."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .report import Report, Sheet
from .rows import CLASS_METRICS, Result


class WholeTable(Table):
    """A table that grows beyond a narrow terminal, where rich would cut numbers off; columns that fold do so first."""

    least = 20  # characters of a column that folds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = 1
        for column in self.columns:
            cells = (column.header, *column.cells)
            longest = max(cell_len(Text.from_markup(str(cell)).plain) for cell in cells)
            needed += min(longest, self.least if column.overflow == "fold" else longest) + 3  # padding and border
        wide = options.update(max_width=max(options.max_width, needed))
        yield from super().__rich_console__(console, wide)


def to_table(report: Report) -> Table:
    """A result for a terminal."""
    return draw(report.sheet())


def draw(sheet: Sheet) -> Table:
    """A table for a terminal."""
    # Paths may hold brackets, which rich would take for markup.
    table = WholeTable(
        title=sheet.title and escape(sheet.title),
        caption=escape(". ".join(sheet.notes)),
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    for number, heading in enumerate(sheet.headings):
        if number < sheet.names:
            table.add_column(heading, overflow="fold")  # On a narrow terminal names wrap, and numbers stay whole.
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for line in sheet.lines:
        table.add_row(*map(escape, line.cells), end_section=line.ends_section, style=line.style)
    return table


def to_markdown(report: Report) -> str:
    """A result as a Markdown table with what it depends on, for a README or a model card."""
    return report.sheet().to_markdown()


def to_class_table(result: Result, limit: int = 20) -> Table:
    """Quality per class of the dense row and of the first group, as in JSON; of many classes those that lose most."""
    shown = [row for row in result.rows if row.kind in ("dense", "clusters") and row.group <= 1]
    dense, last = shown[0].classes, shown[-1].classes
    loss = {name: (dense[name] or 0) - (last[name] or 0) for name in dense if dense[name] is not None}
    names = list(loss) if len(loss) <= limit else sorted(loss, key=loss.get, reverse=True)[:limit]
    which = (
        "" if len(names) == len(loss) else f", the {limit} of {len(loss)} classes that lose most in the last column"
    )
    table = Table(
        title=f"{CLASS_METRICS.get(result.task, 'IoU')} per class{which}",
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("class")
    for row in shown:
        # The first group shares its grid and schedule, which its rows in the table above name.
        table.add_column(escape(row.name.partition(", ")[2] or row.name), justify="right")
    for name in names:
        values = [row.classes[name] for row in shown]
        table.add_row(escape(name), *("" if value is None else f"{value:.4f}" for value in values))
    return table
