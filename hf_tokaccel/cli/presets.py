"""`hf_tokaccel presets`: settings that have names."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..checks import UserError, did_you_mean
from .frame import AsJson, app, console, print_json, user_errors


@app.command("presets")
@user_errors()
def presets(
    match: Annotated[str, typer.Argument(help="Show only lines that hold this text.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/settings.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the released settings, which `--accel released:NAME` and `hf_tokaccel.released` take by name.

    \b
    hf_tokaccel presets
    hf_tokaccel presets mask2former
    hf_tokaccel presets --json
    """
    from ..tuning.released import RELEASED, released_table, table_cells

    headings, *lines = table_cells(match)
    if not lines:
        near = did_you_mean(match, {*RELEASED, *(row.model for row in RELEASED.values())})
        raise UserError(f"no preset holds {match!r}{near}; `hf_tokaccel presets` lists all {len(RELEASED)}")
    if as_json:
        names = [line[0] for line in lines]
        print_json([{"name": name, "accel": RELEASED[name].accel} for name in names])
    elif markdown:
        typer.echo(released_table(match))
    else:
        table = Table(*headings, title=f"{len(lines)} presets", title_justify="left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
        console.print(
            "And for any model: --accel recommended:1.5, what did best so far at that ratio of FLOPs: adaptive "
            "clusters where the model takes them (`hf_tokaccel models`), else a grid."
        )
