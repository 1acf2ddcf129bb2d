"""`hf_tokaccel models`: what is supported."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..checks import UserError, did_you_mean
from .frame import AsJson, app, console, print_json, user_errors


@app.command("models")
@user_errors()
def models(
    match: Annotated[str, typer.Argument(help="Show only types and classes that hold this text.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the model types that can be accelerated.

    \b
    hf_tokaccel models
    hf_tokaccel models depth
    hf_tokaccel models --json
    """
    from ..registry import FAMILIES

    found = {
        name: family
        for name, family in sorted(FAMILIES.items())
        if any(match.lower() in text.lower() for text in (name, *(cls.__name__ for cls in family.models)))
    }
    if not found:
        near = did_you_mean(match, FAMILIES)
        raise UserError(
            f"no model type or class holds {match!r}{near}; `hf_tokaccel models` lists all {len(FAMILIES)}"
        )
    if as_json:
        print_json(
            [
                {
                    "model_type": name,
                    "accelerated_type": family.config.model_type,
                    "classes": [cls.__name__ for cls in family.models],
                    "adaptive": family.adaptive,
                    "note": family.note,
                }
                for name, family in found.items()
            ]
        )
        return
    table = Table(title=f"{len(found)} model types", title_justify="left")
    for heading in ("model type", "classes"):
        table.add_column(heading, no_wrap=True)
    table.add_column("adaptive", no_wrap=True)
    table.add_column("notes", overflow="fold")
    for name, family in found.items():
        classes = "\n".join(cls.__name__.removeprefix("TokAccel") for cls in family.models)
        table.add_row(name, classes, {True: "yes", False: "", None: "backbone"}[family.adaptive], family.note)
    console.print(table)
    console.print(
        "adaptive: takes `clusters`, of free shape (`backbone`: where that does); the others a `cluster_grid` alone."
    )
    console.print("Every model whose backbone_config is one of these with a Backbone class can be accelerated too.")
