"""`hf_tokaccel accelerate`: a checkpoint with a setting, as a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import UserError, brief
from .frame import AsJson, Overwrite, app, check_output_folder, console, print_json, user_errors

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


@app.command("accelerate")
@user_errors()
def accelerate(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or depth, segmentation, panoptic for ours.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    cluster_after: Annotated[
        str | None,
        typer.Option(help="Full-resolution blocks before clustering; of adaptive clusters also several, as 1/3/5."),
    ] = None,
    cluster_grid: Annotated[str | None, typer.Option(help="Clusters as HxW, or one side of a square.")] = None,
    clusters: Annotated[
        str | None,
        typer.Option(help="Adaptive clusters in place of a grid: share of the tokens or count, 0.5 or 0.8/0.6/0.5."),
    ] = None,
    accel: Annotated[
        str | None,
        typer.Option(
            help="A whole setting: JSON, a file of it, key=value,key=value, released:NAME or recommended:1.5."
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="Pixels as HxW that it will run at: checked against the setting, or recommended for."),
    ] = None,
    auto_class: Annotated[
        str | None,
        typer.Option(help="Auto class to load with, such as AutoModelForDepthEstimation, if not as config.json says."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto: that of the checkpoint.")] = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Give a checkpoint a setting, and write weights, config, processor and card to a folder.

    The weights stay as they are. Without a setting it is the recommended one for 1.5 times fewer FLOPs of the whole
    model; `hf_tokaccel tune` finds a setting for your images.

    \b
    hf_tokaccel accelerate Intel/dpt-large --out dpt-large-tokaccel
    hf_tokaccel accelerate Intel/dpt-large --out fast --accel recommended:2
    hf_tokaccel accelerate Intel/dpt-large --out fast --cluster-after 2 --clusters 0.5
    hf_tokaccel accelerate Intel/dpt-large --out fast --cluster-after 12 --cluster-grid 16x16
    hf_tokaccel accelerate facebook/sam-vit-huge --out fast --accel cluster_after=6,cluster_grid=9x9,iterations=5
    """
    from ..auto import accelerate as accelerate_model
    from ..auto import accelerate_config
    from ..checkpoint import load_checkpoint
    from ..hub.card import setting_of
    from ..hub.files import write_card
    from ..images import default_size
    from ..tuning.recommended import SPEEDUP, Recommended

    check_output_folder(out, overwrite)
    setting = read_setting(accel, cluster_after, cluster_grid, clusters)
    size = None if image_size is None else read_size(image_size, "--image-size")
    checkpoint = load_checkpoint(model, auto_class=auto_class, dtype=dtype)
    chosen = setting is not None
    setting = setting or Recommended()
    if isinstance(setting, Recommended):
        config = checkpoint.model.config
        accelerate_config(config, None)  # Whether it is supported is asked before its size is.
        setting = setting.resolve(config, size or default_size(config, checkpoint.processor, "--image-size"))
    fast = accelerate_model(checkpoint.model, setting, size)
    fast.save_pretrained(out)
    if checkpoint.processor is not None:
        checkpoint.processor.save_pretrained(out)
    write_card(out, str(out), None, base_model=checkpoint.base_model, license=license_of(checkpoint))
    stored = setting_of(fast.config)
    if as_json:
        print_json({"folder": str(out), "class": type(fast).__name__, "accel": stored, "chosen": chosen})
        return
    text = described(stored)
    console.print(f"Wrote {out}: {type(fast).__name__}, {text}.", markup=False, soft_wrap=True)
    if not chosen:
        console.print(f"note: no setting was given, so it is that recommended for {SPEEDUP} times the speed in FLOPs.")
    if checkpoint.processor is None:
        console.print(f"note: {checkpoint.source} has no image processor, so neither has {out}.", markup=False)
    console.print(f"Next: hf_tokaccel evaluate {out} measures it and fills its card.", markup=False)


def described(accel: dict[str, Any]) -> str:
    """A stored setting in words: its clusters, blocks and expansion."""
    from ..settings.clustering import TokenClusteringConfig
    from ..settings.naming import group_name

    if accel["method"] != TokenClusteringConfig.method:
        return accel["method"]
    setting = TokenClusteringConfig.from_dict(accel)
    kind = "adaptive" if setting.adaptive else "grid"
    return f"{kind} clusters {group_name(setting)} blocks, expansion={setting.expansion}"


def read_setting(
    accel: str | None, cluster_after: str | None, cluster_grid: str | None, clusters: str | None = None
) -> Any | None:
    """The setting that the options name, a `Recommended` among them; None where they name none.

    Raises:
        ValueError: They contradict each other, or half of a setting is missing, or it is not valid.
    """
    from ..settings.clustering import TokenClusteringConfig
    from ..tuning.text import parse_accel

    given = {"cluster_after": cluster_after, "cluster_grid": cluster_grid, "clusters": clusters}
    given = {name: text for name, text in given.items() if text is not None}
    if accel is not None:
        if given:
            raise UserError("--accel is a whole setting: leave out --cluster-after, --cluster-grid and --clusters")
        path = Path(accel)
        return parse_accel(path.read_text(encoding="utf-8") if path.suffix == ".json" else accel)
    if not given:
        return None
    if len(given) != 2 or "cluster_after" not in given:
        raise UserError(
            "--cluster-after and one of --cluster-grid and --clusters go together, for example --cluster-after 2 "
            "--clusters 0.5 or --cluster-after 6 --cluster-grid 16x16; give two, or none for the default"
        )
    if cluster_grid is not None:
        size = read_size(cluster_grid, "--cluster-grid")
        return TokenClusteringConfig(cluster_after=_numbers(cluster_after, "--cluster-after"), cluster_grid=size)
    return TokenClusteringConfig(
        cluster_after=_numbers(cluster_after, "--cluster-after"), clusters=_numbers(clusters, "--clusters")
    )


def _numbers(text: str, option: str) -> Any:
    """A number, or several with a slash between."""
    example = "2 or 1/3/5" if option == "--cluster-after" else "0.5 or 0.8/0.6/0.5"
    try:
        found = [int(part) if part.isascii() and part.isdigit() else float(part) for part in text.split("/")]
    except ValueError:
        raise UserError(f"{option} {brief(text)} must be a number or several, for example {example}") from None
    return tuple(found) if len(found) > 1 else found[0]


def read_size(text: str, option: str) -> tuple[int, int]:
    """(height, width) from "HxW" or one side of a square."""
    sides = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text.lower())
    if sides is None:
        raise UserError(f"{option} {brief(text)} must be HEIGHTxWIDTH or one number, for example 16x16")
    return int(sides[1]), int(sides[2] or sides[1])


def license_of(checkpoint: Checkpoint) -> str | None:
    """The licence that the base model's card names, if it can be read."""
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        folder = Path(checkpoint.source)
        path = folder / "README.md" if folder.is_dir() else hf_hub_download(checkpoint.source, "README.md")
        return ModelCard.load(path).data.license
    except (OSError, ValueError):
        return None
