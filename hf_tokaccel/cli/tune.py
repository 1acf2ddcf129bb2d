"""`hf_tokaccel tune`: the setting that fits a budget, found on unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..checks import UserError
from .frame import AsJson, app, console, errors, print_json, user_errors

if TYPE_CHECKING:
    from ..settings.clustering import TokenClusteringConfig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@app.command()
@user_errors()
def tune(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, or a model of this package: depth, segmentation, panoptic.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of unlabelled images like those that the model will see; default: our own scenes."),
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Measured speed to reach on this machine, such as 1.5.")
    ] = None,
    agreement: Annotated[
        float | None, typer.Option(help="Agreement with the dense model to keep, such as 0.99.")
    ] = None,
    gflops: Annotated[
        float | None, typer.Option(help="Share of the dense GFLOPs to stay within, such as 0.6.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Image size in pixels; default: what the model was made for.")
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Images to look at.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a call; speed depends on it.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, for --speedup.")] = 5,
    device: Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of images.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write all that was found here, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of agreement over GFLOPs here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the setting that agrees best with the dense model within a budget; no labels are needed.

    For example 60 % of the arithmetic of the depth model of this package:

        hf_tokaccel tune depth --gflops 0.6 --plot pareto.png

    and a checkpoint on your own images, 1.5 times as fast on this machine:

        hf_tokaccel tune Intel/dpt-large --images photos/ --speedup 1.5 --out tuned.json
    """
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {plot} must end in .png, .pdf or .svg, for example pareto.png")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json, for example tuned.json")
    if sum(budget is not None for budget in (speedup, agreement, gflops)) != 1:
        raise UserError("give exactly one of --speedup, --agreement and --gflops, for example --gflops 0.6")
    paths = None if images is None else _files(images)

    from ..auto import accelerate_config
    from ..bench.subject import parse_device
    from ..checkpoint import load_checkpoint
    from ..images import as_images, default_size, parse_size
    from ..tuning.api import tune as search

    target, sides = parse_device(device), parse_size(size)
    checkpoint = load_checkpoint(model)
    accelerate_config(checkpoint.model.config, None)  # Whether it is supported is asked before its size is.
    sides = sides or default_size(checkpoint.model.config, checkpoint.processor)
    pixel_values = as_images(_pictures(paths, sides, max_images, seed), sides, checkpoint.processor)
    with console.status("measuring the dense model") as status:
        if as_json:
            status.stop()
        count = 0

        def advance(trial) -> None:
            nonlocal count
            count += 1
            status.update(f"{count} settings, the last: {trial.name}, agreement {trial.agreement:.4f}")

        result = search(
            checkpoint.model.to(target),
            pixel_values,
            speedup=speedup,
            agreement=agreement,
            gflops=gflops,
            max_images=max_images,
            batch_size=batch_size,
            rounds=rounds,
            seed=seed,
            advance=advance,
        )
    for path, write in ((out, result.save), (plot, result.plot)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            errors.print(f"Wrote {path}.", markup=False)
    if as_json:
        print_json(result.to_dict())
        return
    console.print(result.to_table())
    console.print(f"--accel {accel_text(result.accel)}", markup=False, soft_wrap=True)


def accel_text(setting: TokenClusteringConfig) -> str:
    """A setting as `--accel` takes it, without what is the default."""
    plain = type(setting)(cluster_after=0, **({"clusters": 1} if setting.adaptive else {"cluster_grid": 1})).to_dict()
    fields = {name: value for name, value in setting.to_dict().items() if value is not None}
    schedule = ("cluster_after", "cluster_grid", "clusters")
    said = [name for name in fields if name in schedule or fields[name] != plain[name]]
    return ",".join(f"{name}={_said(fields[name], 'x' if name == 'cluster_grid' else '/')}" for name in said)


def _said(value: object, between: str) -> str:
    return between.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).lower()


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder: give one with image files ({', '.join(SUFFIXES)})")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"--images {folder} holds no image file ({', '.join(SUFFIXES)}): give a folder that does")
    return paths


def _pictures(paths: list[Path] | None, size: tuple[int, int], count: int, seed: int) -> list:
    """Arrays (H, W, 3) uint8: of files, of which some are drawn, or of our scenes."""
    import torch

    from ..images import read_image
    from ..scenes import SceneDataset

    if paths is None:
        # Those that the reference models were neither trained nor tested on.
        scenes = SceneDataset("validation", count, size, seed=seed, channels_last=True)
        return [item["image"] for item in scenes.__getitems__(range(count))]
    if len(paths) > count:
        drawn = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:count]
        paths = [paths[index] for index in sorted(drawn.tolist())]
    return [read_image(path) for path in paths]
