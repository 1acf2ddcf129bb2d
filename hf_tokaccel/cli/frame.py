"""What the commands share: the app that they register on, how they speak, and how they fail.

A command is a module of this package that registers on `app` when it is imported; nothing else needs an edit:

    @app.command()
    @user_errors()
    def show(image: Annotated[Path, typer.Argument(help="...")], as_json: AsJson = False) -> None:
        ...

Imports that take long, such as torch's, belong into the command, so that `--help` stays quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, as the Hub's client has it
from rich.console import Console
from typer.core import TyperGroup

from ..checks import UserError

_debug: ContextVar[bool] = ContextVar("tokaccel_debug", default=False)


class _Commands(TyperGroup):
    """Commands that take `--debug` behind them too, where one adds it to a line that failed."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(word for word in args[:end] if word != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    help="Token clustering for vision transformers of Hugging Face Transformers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # a token is among those of `push`
)

console = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from, with its traceback.")
    ] = False,
) -> None:
    """Makes `app` a group of commands however many it has, and keeps what all of them take."""
    _debug.set(debug)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns what a user can put right into one line and exit code 2; other errors are bugs and show a traceback.

    With `--debug` all do.

    A context manager, and with `@user_errors()` a decorator of commands.
    """
    try:
        yield
    except (UserError, OSError, HTTPError) as error:
        if _debug.get():
            raise
        named = isinstance(error, OSError) and error.filename is not None
        text = f"{error.filename}: {error.strerror}" if named else str(error) or type(error).__name__
        errors.print(f"error: {' '.join(text.split())}", style="red", markup=False)
        raise typer.Exit(2) from error


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Raises ValueError where a command would write among files that are not its own."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: give a folder that is empty or does not exist yet.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give another folder, or --overwrite to write into this one.")


def print_json(data: Any) -> None:
    """The one thing on standard output of a command with `--json`."""
    typer.echo(json.dumps(data, indent=2, default=str))
