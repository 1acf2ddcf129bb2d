"""`hf_tokaccel export`: a model as ONNX or `torch.export` program, checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..checks import UserError
from .frame import AsJson, app, console, print_json, user_errors


@app.command()
@user_errors()
def export(
    model: Annotated[str, typer.Argument(help="As for bench: Hub id, folder, name of a model or architecture.")],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for --format torch.")],
    format: Annotated[str, typer.Option(help="onnx or torch (torch.export).")] = "onnx",
    accel: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING",
            help="JSON, cluster_after=10,cluster_grid=28x28,..., released:NAME or recommended:1.5; none: dense. "
            "Default: what is stored with it.",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Image size in pixels; the graph takes no other.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a call; the graph takes no other number.")] = 1,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare the file with the eager model.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model's graph, and check the file against the model before you ship it.

    For example:

        hf_tokaccel export depth --out depth.onnx --accel cluster_after=4,cluster_grid=12x12

        hf_tokaccel export me/dpt-large-tokaccel --format torch --out dpt.pt2
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: give another name, or --overwrite to replace it")
    from ..auto import accelerate
    from ..bench.subject import load_subject
    from ..export import export_model
    from ..settings.naming import group_name
    from ..tuning.text import parse_accel, resolve_accels

    subject = load_subject(model, size, "cpu", None, batch_size)
    image_size = tuple(subject.images.shape[-2:])
    setting = (subject.settings or [None])[0]
    if accel:
        setting = None
    if accel and accel != "none":
        (setting,) = resolve_accels([parse_accel(accel)], subject.model.config, image_size)
    with console.status("exporting") as status:
        if as_json:
            status.stop()
        accelerated = accelerate(subject.model, setting, image_size if setting else None)
        exported = export_model(accelerated, subject.images, out, format, check=check)
    stored = None if setting is None else setting.to_dict()
    if as_json:
        print_json({**dataclasses.asdict(exported), "accel": stored})
        return
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in exported.outputs.items())
    kind = "dense" if setting is None else f"clusters {group_name(setting)}"
    console.print(
        f"Wrote {exported.path}: {kind}, pixel_values {'x'.join(map(str, exported.inputs))} to {shapes}.", markup=False
    )
    if check:
        console.print(f"Checked: differs from eager by {exported.difference:.1e} of the largest output.", markup=False)
