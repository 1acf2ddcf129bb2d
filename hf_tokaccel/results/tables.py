"""Results as a table on the terminal and as Markdown."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .rows import CLASS_METRICS, Column, Result, Row

_COST_HEADINGS = ("images/s ↑", "speed", "GFLOPs ↓", "of dense")


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cells(row: Row, columns: tuple[Column, ...]) -> list[str]:
    quality = [cell for column in columns for cell in column.cells(row)]
    cost = [
        f"{row.images_per_second:.1f}",
        f"{row.speedup:.2f}x",
        _three_digits(row.gflops),
        f"{100 * row.gflops_ratio:.0f} %",
    ]
    return [row.name, *quality, *cost]


def _headings(result: Result) -> list[str]:
    return [heading for column in result.columns for heading in column.headings()] + list(_COST_HEADINGS)


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


def to_table(result: Result) -> Table:
    """The result for a terminal, one section per group of similar cost."""
    # Paths may hold brackets, which rich would take for markup.
    title = escape(f"{result.model} on {result.dataset}: {result.num_images} images")
    table = WholeTable(
        title=title,
        caption=escape(". ".join(result.footnotes)),
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("model", overflow="fold")  # On a narrow terminal names wrap, and numbers stay whole.
    for heading in _headings(result):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, row in enumerate(result.rows):
        last_of_group = i + 1 == len(result.rows) or result.rows[i + 1].group != row.group
        style = "bold" if row.kind == "dense" else "dim" if row.kind != "clusters" else None
        table.add_row(*_cells(row, result.columns), end_section=last_of_group, style=style)
    return table


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


def to_markdown(result: Result) -> str:
    """The result as a Markdown table with what it depends on, for a README or a model card."""
    headings = ["model", *_headings(result)]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *(_cells(row, result.columns) for row in result.rows)]
    machine, versions = result.environment["machine"], result.environment["versions"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    git = result.environment.get("git")
    footer = [
        f"{result.model} on {result.dataset}, {result.num_images} images",
        f"{device}, threads {machine['threads']}, batch {result.options['batch_size']}, {result.options['dtype']}",
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}",
        *([f"commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}"] if git else []),
        *result.footnotes,
    ]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", ". ".join(footer) + "."]) + "\n"
