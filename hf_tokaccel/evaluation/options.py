"""What a user may say to an evaluation, as plain data: the options that all tasks have in common.

Each field is an option of `hf_tokaccel evaluate TASK`, which reads help texts and types here, so this needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from ..checks import UserError

TABLES = "a folder that the datasets library reads, or a Hub name such as owner/name"
_LEAST = {"batch_size": 1, "rounds": 1, "limit": 1, "pictures": 0, "num_workers": 0, "seed": 0}

# Declared apart, since tasks have defaults of their own for them.
BatchSize = Annotated[int, Option(help="Images in a call.")]
Rounds = Annotated[int, Option(help="Timed rounds.")]
Output = Annotated[Path, Option(help="Folder for JSON, Markdown and pictures.")]


@dataclass(kw_only=True)
class Options:
    """Options that all tasks have.

    Raises:
        ValueError: A number that is too small.
    """

    task: ClassVar[str]

    model: Annotated[
        str | None, Option(help="Hub id or folder of a model for this task; default: the model of this package.")
    ] = None
    dataset: str
    limit: Annotated[
        int | None, Option(help="Number of images at most; default: all, or 200 scenes (depth: 100).")
    ] = None
    skip_bad: Annotated[bool, Option("--skip-bad", help="Leave out image files that cannot be read, and say so.")] = (
        False
    )
    accel: Annotated[
        list[str] | None,
        Option(
            metavar="SETTING",
            help="JSON, key=value,..., released:NAME or recommended:1.5; repeatable; none: only dense.",
        ),
    ] = None
    batch_size: BatchSize = 8
    num_workers: Annotated[int, Option(help="Processes that load data.")] = 0
    dtype: Annotated[str, Option(help="float32, float16, bfloat16, or auto: that of the checkpoint.")] = "float32"
    compile: Annotated[str | None, Option(metavar="[BACKEND]", help="Use torch.compile; alone: inductor.")] = None
    cpu: Annotated[bool, Option("--cpu", help="Run on the CPU even where there is a GPU.")] = False
    rounds: Rounds = 10
    pictures: Annotated[int, Option(help="Images in the picture.")] = 4
    images: Annotated[
        list[str] | None,
        Option(metavar="[PATH ...]", help="Show these photographs instead; alone: some of scikit-image."),
    ] = None
    seed: Annotated[int, Option(help="Picks the scenes and the draws of confidence intervals.")] = 0
    output: Output
    json: Annotated[
        bool, Option("--json", help="Print the results as JSON for other programs instead of a table.")
    ] = False

    def __post_init__(self):
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} must be at least {least}, for example {least + 4}"
                )


@dataclass(kw_only=True)
class SplitOptions(Options):
    """Of tasks whose data sets have splits."""

    split: Annotated[str | None, Option(help="Of the data set; default: the one that is scored, or test.")] = None


@dataclass(kw_only=True)
class TableOptions(SplitOptions):
    """Of tasks that read tables of the `datasets` library."""

    image_column: Annotated[str, Option(help="Of a `datasets` table.")] = "image"
