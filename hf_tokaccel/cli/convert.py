"""`hf_tokaccel convert`: checkpoints of other code bases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .frame import Overwrite, app, check_output_folder, console, user_errors

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
    from ..models.segmenter.convert import convert

    with user_errors():
        check_output_folder(output, overwrite)
        conversion = convert(checkpoint, variant)
        conversion.save(output)
    config = conversion.model.config
    size = sum(parameter.numel() for parameter in conversion.model.parameters())
    console.print(
        f"Wrote {output}: {config.num_hidden_layers} blocks of {config.hidden_size} channels, {config.decoder_type}, "
        f"{config.num_labels} classes, {size:,} parameters.",
        markup=False,
    )
    for note in conversion.notes:
        console.print(f"note: {note}", markup=False)
