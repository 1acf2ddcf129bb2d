"""`hf_tokaccel bench`: a model and its rivals in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checks import UserError
from .frame import AsJson, app, console, errors, print_json, user_errors


@app.command()
@user_errors()
def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder, a model of this package (depth, segmentation, panoptic), or an architecture with "
            "random weights: segmenter-l-640, dpt-large-384, dpt-large-480x640, depth-anything-l-518, "
            "mask2former-swin-l-1152, sam-h-1024."
        ),
    ],
    accel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="JSON, cluster_after=10,cluster_grid=28x28,..., released:NAME or recommended:1.5; repeatable.",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Image size in pixels; default: what the model was made for.")
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="How to run, repeatable: float32, bfloat16, float16, int8, int8-torchao; sdpa or eager; compile or "
            "reduce-overhead (CUDA graphs). Default: float32,sdpa."
        ),
    ] = None,
    every_mode: Annotated[
        bool, typer.Option("--every-mode", help="float32 and bfloat16, with and without SDPA and torch.compile.")
    ] = False,
    images: Annotated[
        list[Path] | None, typer.Option(help="Photographs to run on; default: some of scikit-image.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 1,
    device: Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 10,
    rivals: Annotated[
        bool, typer.Option("--rivals/--no-rivals", help="Grid pooling, lower resolution and token merging as rows.")
    ] = True,
    backend: Annotated[str, typer.Option(help="Of torch.compile.")] = "inductor",
    output: Annotated[Path | None, typer.Option(help="Write JSON (.json) or Markdown (.md) here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model, dense and accelerated, and its rivals, in one interleaved run.

    For example on your processor, with the depth model of this package:

        hf_tokaccel bench depth --accel cluster_after=4,cluster_grid=12x12

    and a checkpoint on a GPU, in the two ways that people run it:

        hf_tokaccel bench Intel/dpt-large --mode float32 --mode bfloat16,compile --batch-size 8
    """
    if output is not None and output.suffix not in (".json", ".md"):
        raise UserError(f"--output {output} must end in .json or .md, for example bench.json")
    import torch

    from ..bench.modes import EVERY_MODE, parse_mode
    from ..bench.run import bench as measure
    from ..bench.subject import load_subject
    from ..results.tables import to_markdown, to_table
    from ..tuning.text import parse_accels, resolve_accels

    if threads is not None:
        torch.set_num_threads(threads)
    if every_mode and mode:
        raise UserError("--every-mode goes with no --mode: give one of the two, for example --mode bfloat16,compile")
    modes = [parse_mode(text, backend) for text in (EVERY_MODE if every_mode else mode or ["float32,sdpa"])]
    subject = load_subject(model, size, device, images, batch_size)
    settings = subject.settings
    if accel:
        settings = resolve_accels(parse_accels(accel), subject.model.config, tuple(subject.images.shape[-2:]))
    with console.status("preparing") as status:
        if as_json:
            status.stop()
        result = measure(
            subject.model,
            subject.images,
            settings,
            modes=modes,
            rivals=rivals,
            rounds=rounds,
            name=model,
            advance=lambda what, done, total: status.update(f"{what} {done} of {total}"),
        )
    result.notes += subject.notes
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        result.save(output) if output.suffix == ".json" else output.write_text(to_markdown(result), encoding="utf-8")
        errors.print(f"Wrote {output}.", markup=False)
    if as_json:
        print_json(result.to_dict())
    else:
        console.print(to_table(result))
