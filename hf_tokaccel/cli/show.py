"""`hf_tokaccel show`: what a setting does to one image, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checks import UserError
from .frame import AsJson, app, console, print_json, user_errors


@app.command()
@user_errors()
def show(
    image: Annotated[
        str,
        typer.Argument(help="File, photograph of scikit-image (astronaut, coffee, ...), or rendered scene: scene:7."),
    ] = "astronaut",
    model: Annotated[
        list[str] | None,
        typer.Option(help="Hub id or folder, or depth, segmentation, panoptic for ours, the default; repeatable."),
    ] = None,
    accel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="JSON, cluster_after=4,cluster_grid=12x12,..., released:NAME or recommended:1.5; repeatable.",
        ),
    ] = None,
    after: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Cluster after this number of blocks in place of the setting's; repeatable."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="PNG to write; of several models one each, with the model's name.")
    ] = Path("clusters.png"),
    device: Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw clusters and their mean colours, dense and accelerated output of one image, and where they differ.

    One line for each setting; without any, those that the evaluation compares. The models of this package know
    rendered rooms only: what they say of photographs is not sensible, but shows where the two differ.

    \b
    hf_tokaccel show
    hf_tokaccel show scene:3 --model segmentation
    hf_tokaccel show holiday.jpg --model Intel/dpt-large --accel cluster_after=8,cluster_grid=12x12
    hf_tokaccel show scene --model depth --accel cluster_after=2,cluster_grid=12x12 --after 2 --after 5 --after 8
    """
    import torch

    from ..evaluation.cluster_pictures import draw_views, sayings
    from ..evaluation.showing import TASKS, load_shown, make_views, open_sample, settings_for
    from ..tuning.text import parse_accels

    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} must end in .png, for example {out.with_suffix('.png')}")
    names = list(model or TASKS)
    settings = parse_accels(accel or [])
    if accel and not settings:
        raise UserError("--accel none has no clusters to show: name a setting, or leave --accel out")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    written = []
    for name in names:
        loaded = load_shown(name, chosen)
        sample = open_sample(image, loaded)
        found = settings_for(loaded, sample, settings, after or [])
        with torch.inference_mode():
            _, views = make_views(loaded, sample, found)
        path = out if len(names) == 1 else out.with_stem(f"{out.stem}-{Path(name).name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_views(loaded.task, views, path, f"{loaded.name}: {sample['name']}")
        said = dict(zip((view.name for view in views), sayings(loaded.task, views), strict=True))
        written.append({"picture": str(path), "model": name, "image": sample["name"], "settings": said})
        if not as_json:
            for setting, text in said.items():
                console.print(f"{loaded.name}, {setting}: {text}", markup=False)
            console.print(f"Wrote {path}.", markup=False)
    if as_json:
        print_json(written)
