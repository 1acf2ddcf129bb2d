"""`hf_tokaccel plot`: quality against cost, from the JSON of an evaluation or a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checks import UserError
from .frame import app, console, user_errors


@app.command()
@user_errors()
def plot(
    results: Annotated[list[Path], typer.Argument(help="JSON files of hf_tokaccel evaluate or hf_tokaccel bench.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write; default: pareto.png beside each file.")
    ] = None,
) -> None:
    """Plot quality against GFLOPs and against speed, rivals included.

    \b
    hf_tokaccel plot outputs/evaluate_depth/result.json
    hf_tokaccel plot bench.json --out bench.png
    """
    from ..results.pareto import draw_pareto, load_plot

    if out is not None and len(results) > 1:
        raise UserError(f"--out {out} is one picture, but {len(results)} files are given: leave it out, or give one")
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out} must end in .png, for example {out.with_suffix('.png')}")
    for result in results:
        drawn = load_plot(result)
        path = out or result.with_name("pareto.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        console.print(f"Wrote {draw_pareto(drawn, path)}.", markup=False)
