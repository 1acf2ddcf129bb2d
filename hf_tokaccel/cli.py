"""The command line: `hf_tokaccel COMMAND`, also installed as `tokaccel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from .checkpoints import Conversion

app = typer.Typer(help="Token clustering for vision transformers of Hugging Face Transformers.", no_args_is_help=True)
convert_app = typer.Typer(help="Convert checkpoints of other code bases.", no_args_is_help=True)
app.add_typer(convert_app, name="convert")

console = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)


@app.callback()
def main() -> None:
    """Makes `app` a group of commands however many it has."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns what a user can put right into one line and exit code 2; other errors are bugs and show a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None
        text = f"{error.filename}: {error.strerror}" if named else str(error)
        errors.print(f"error: {text}", style="red", markup=False)
        raise typer.Exit(2) from error


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Raises ValueError where a command would write among files that are not its own."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a folder that is empty or does not exist yet.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give another folder, or --overwrite to write into this one.")


@convert_app.command("segmenter")
def convert_segmenter(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint.pth of rstrudel/segmenter.")],
    variant: Annotated[Path, typer.Argument(help="The variant.yml that lies beside it.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Convert an original Segmenter checkpoint to a folder that Transformers loads."""
    from .models.segmenter.convert import convert

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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Convert a released STViT-R checkpoint (on Swin) to a folder that Transformers loads."""
    from .semantic.convert import convert

    with user_errors():
        check_output_folder(output, overwrite)
        conversion = convert(checkpoint, shortcut=shortcut)
        conversion.save(output)
    config = conversion.model.config
    last = f"{config.num_labels} classes" if hasattr(conversion.model, "classifier") else "a Backbone"
    tell_conversion(conversion, output, f"depths {config.depths}, from {config.embed_dim} channels, {last}")


def tell_conversion(conversion: Conversion, output: Path, summary: str) -> None:
    """Says what was written, and what the conversion left out or assumed."""
    size = sum(parameter.numel() for parameter in conversion.model.parameters())
    console.print(f"Wrote {output}: {summary}, {size:,} parameters.", markup=False)
    for note in conversion.notes:
        console.print(f"note: {note}", markup=False)


if __name__ == "__main__":
    app()
