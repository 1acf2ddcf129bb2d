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
    cluster_after: Annotated[int | None, typer.Option(help="Full-resolution blocks before clustering.")] = None,
    cluster_grid: Annotated[str | None, typer.Option(help="Clusters as HxW, or one side of a square.")] = None,
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

    The weights stay as they are. Without a setting it is the recommended one that makes the encoder 1.5 times as fast
    in FLOPs; `hf_tokaccel tune` finds a setting for your images.

    \b
    hf_tokaccel accelerate Intel/dpt-large --out dpt-large-tokaccel
    hf_tokaccel accelerate Intel/dpt-large --out fast --accel recommended:2
    hf_tokaccel accelerate Intel/dpt-large --out fast --cluster-after 12 --cluster-grid 16x16
    hf_tokaccel accelerate facebook/sam-vit-huge --out fast --accel cluster_after=6,cluster_grid=9x9,iterations=5
    """
    from ..auto import accelerate as accelerate_model
    from ..auto import accelerate_config
    from ..checkpoint import load_checkpoint
    from ..hub.card import setting_of
    from ..hub.files import write_card
    from ..images import default_size, made_size
    from ..tuning.recommended import SPEEDUP, Recommended

    check_output_folder(out, overwrite)
    setting = read_setting(accel, cluster_after, cluster_grid)
    size = None if image_size is None else read_size(image_size, "--image-size")
    checkpoint = load_checkpoint(model, auto_class=auto_class, dtype=dtype)
    chosen = setting is not None
    setting = setting or Recommended()
    config = checkpoint.model.config
    accelerate_config(config, None)  # Whether it is supported is asked before its size is.
    if isinstance(setting, Recommended):
        setting = setting.resolve(config, size or default_size(config, checkpoint.processor, "--image-size"))
    size = size or made_size(checkpoint.processor)
    fast = accelerate_model(checkpoint.model, setting, size)
    fast.save_pretrained(out)
    if checkpoint.processor is not None:
        checkpoint.processor.save_pretrained(out)
    write_card(out, str(out), None, base_model=checkpoint.base_model, license=license_of(checkpoint))
    stored = setting_of(fast.config)
    if as_json:
        print_json({"folder": str(out), "class": type(fast).__name__, "accel": stored, "chosen": chosen})
        return
    count = "clusters" if stored["cluster_grid"] is None else "cluster_grid"
    number = tuple(stored[count]) if isinstance(stored[count], list) else stored[count]
    text = f"cluster_after={stored['cluster_after']}, {count}={number}"
    console.print(f"Wrote {out}: {type(fast).__name__}, {text}, expansion={stored['expansion']}.", markup=False)
    if not chosen:
        console.print(f"note: no setting was given, so it is that recommended for {SPEEDUP} times the speed in FLOPs.")
    if checkpoint.processor is None:
        console.print(f"note: {checkpoint.source} has no image processor, so neither has {out}.", markup=False)
    console.print(f"Next: hf_tokaccel evaluate {out} measures it and fills its card.", markup=False)


def read_setting(accel: str | None, cluster_after: int | None, cluster_grid: str | None) -> Any | None:
    """The setting that the options name, a `Recommended` among them; None where they name none.

    Raises:
        ValueError: They contradict each other, or half of a setting is missing, or it is not valid.
    """
    from ..settings.clustering import TokenClusteringConfig
    from ..tuning.text import parse_accel

    if accel is not None:
        if cluster_after is not None or cluster_grid is not None:
            raise UserError("--accel is a whole setting: leave out --cluster-after and --cluster-grid")
        path = Path(accel)
        return parse_accel(path.read_text(encoding="utf-8") if path.suffix == ".json" else accel)
    if (cluster_after is None) != (cluster_grid is None):
        raise UserError(
            "--cluster-after and --cluster-grid go together, for example --cluster-after 6 --cluster-grid 16x16; give "
            "both, or neither for the default"
        )
    if cluster_after is None:
        return None
    return TokenClusteringConfig(cluster_after=cluster_after, cluster_grid=read_size(cluster_grid, "--cluster-grid"))


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
