"""`hf_tokaccel evaluate`: the evaluations of the package, which examples/evaluate_*.py run too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature, cleandoc
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from ..checks import UserError
from ..evaluation.options import Options
from ..evaluation.scripts import BY_AUTO_CLASS, EVALUATIONS
from .frame import app, user_errors

# Options that may stand alone, with what they then mean, and those that take several values: Click knows neither.
_ALONE = {"--compile": "inductor", "--images": "", "--ignore-label": ""}
_SEVERAL = ("--images", "--ignore-label")


class _Task(TyperCommand):
    """A command with options of no, one or several values."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spell_out(args))


class _TaskOrModel(TyperGroup):
    """Commands of the tasks; in the place of a task may stand a model, which knows its own."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:
        if args[0] not in self.commands:
            with user_errors():
                args = [guess_task(args[0]), "--model", *args]
        return super().resolve_command(ctx, args)


evaluate_app = typer.Typer(cls=_TaskOrModel, no_args_is_help=True, subcommand_metavar="TASK|MODEL [OPTIONS]")
app.add_typer(evaluate_app, name="evaluate")


@evaluate_app.callback()
def evaluate() -> None:
    """Measure a model, dense against accelerated: quality, speed and cost, with plain rivals, on a data set.

    Writes result.json (for `push` and the card), a table and pictures. A task alone takes the model that comes with
    this package and rendered scenes; a model (Hub id or folder) alone is measured at the task it was trained for, with
    the setting stored with it, if there is one.

    \b
    hf_tokaccel evaluate depth
    hf_tokaccel evaluate depth --model Intel/dpt-large --dataset nyuv2:/data/nyu
    hf_tokaccel evaluate dpt-large-tokaccel --dataset nyuv2:/data/nyu --output dpt-large-tokaccel
    hf_tokaccel evaluate segmentation --help
    """


def spell_out(arguments: Sequence[str]) -> list[str]:
    """`--images a.png b.png` as `--images a.png --images b.png`, and an option that stands alone with its value."""
    result, rest = [], list(arguments)
    while rest:
        option = rest.pop(0)
        if option == "--":
            return [*result, option, *rest]
        result.append(option)
        if option not in _ALONE:
            continue
        values = []
        while rest and not rest[0].startswith("--") and (option in _SEVERAL or not values):
            values.append(rest.pop(0))
        first, *others = values or [_ALONE[option]]
        result += [first, *(word for value in others for word in (option, value))]
    return result


def command_of(evaluation: type[Options]) -> Callable[..., None]:
    """A function for Typer whose parameters are the fields of an evaluation's options."""
    annotations = get_type_hints(evaluation, include_extras=True)
    repeated = [option.removeprefix("--").replace("-", "_") for option in _SEVERAL]

    @user_errors()
    def command(**given: Any) -> None:
        # An option that stood alone comes with a value that says nothing, one that was not given with none.
        values = {name: [v for v in given[name] if v not in ("", None)] for name in repeated if given.get(name)}
        options = evaluation(**given | values)
        from ..evaluation.script import run

        run(options)

    # What Typer reads of a function.
    parameters = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=_default(f), annotation=annotations[f.name])
        for f in fields(evaluation)
    ]
    command.__signature__ = Signature(parameters)
    command.__annotations__ = {f.name: annotations[f.name] for f in fields(evaluation)}
    return command


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _help(text: str) -> str:
    """Help from a docstring: a sentence, and examples whose lines stay as they are."""
    sentence, examples = cleandoc(text).split("\n\n", 1)
    return f"{sentence}\n\n\b\n{examples}"


for _name, _evaluation in EVALUATIONS.items():
    evaluate_app.command(_name, cls=_Task, help=_help(_evaluation.__doc__))(command_of(_evaluation))


def run_script(task: str, description: str, argv: Sequence[str] | None = None) -> int:
    """A script that is the command of one task; returns its exit status.

    Args:
        task: One of the evaluations.
        description: Of the script: a sentence, and examples.
        argv: Arguments; None takes those of the command line.
    """
    script = typer.Typer(add_completion=False, rich_markup_mode="rich")
    script.command(cls=_Task, help=_help(description))(command_of(EVALUATIONS[task]))
    try:
        script(argv)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def guess_task(model: str) -> str:
    """The evaluation that fits what config.json says of a model.

    Raises:
        ValueError: Nothing to load there, or none fits, or several do.
    """
    from ..checkpoint import load_config
    from ..hub.card import auto_class_of

    auto_class = auto_class_of(load_config(model, also=EVALUATIONS))
    found = BY_AUTO_CLASS.get(auto_class, ())
    if len(found) == 1:
        return found[0]
    allowed = " or ".join(found) if found else f"one of {', '.join(EVALUATIONS)}"
    raise UserError(
        f"{model} loads with {auto_class}, for which {'several evaluations fit' if found else 'none is known'}: name "
        f"{allowed}, for example hf_tokaccel evaluate {(found or tuple(EVALUATIONS))[0]} --model {model}"
    )
