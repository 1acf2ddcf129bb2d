"""`hf_tokaccel evaluate`: the evaluations of the package, which examples/evaluate_*.py run too."""

from __future__ import annotations

from typing import Annotated

import typer

from .frame import app, user_errors


@app.command("evaluate", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@user_errors()
def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="TASK|MODEL", help="depth, segmentation, panoptic, instances or sam; or a Hub id or folder."
        ),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS]", help="hf_tokaccel evaluate TASK --help lists them.")
    ] = None,
) -> None:
    """Measure a model, dense against accelerated: quality, speed and cost, with plain rivals, on a data set.

    Writes result.json (for `push` and the card), a table and pictures. A task alone takes the model that comes with
    this package and rendered scenes; a model alone is measured at the task it was trained for, with the setting stored
    with it, if there is one.

    \b
    hf_tokaccel evaluate depth
    hf_tokaccel evaluate depth --model Intel/dpt-large --dataset nyuv2:/data/nyu
    hf_tokaccel evaluate dpt-large-tokaccel --dataset nyuv2:/data/nyu --output dpt-large-tokaccel
    hf_tokaccel evaluate segmentation --help
    """
    from ..evaluation.script import run_script
    from ..evaluation.scripts import NAMES, build_parser, find_script

    task, given = what, arguments or []
    if what not in NAMES:
        task, given = guess_task(what), ["--model", what, *given]
    status = run_script(build_parser(task, f"hf_tokaccel evaluate {task}"), find_script(task).load, given)
    raise typer.Exit(status)


def guess_task(model: str) -> str:
    """The evaluation that fits what config.json says of a model.

    Raises:
        ValueError: Nothing to load there, or none fits, or several do.
    """
    from ..checkpoint import load_config
    from ..evaluation.scripts import BY_AUTO_CLASS, NAMES
    from ..hub.card import auto_class_of

    auto_class = auto_class_of(load_config(model))
    found = BY_AUTO_CLASS.get(auto_class, ())
    if len(found) == 1:
        return found[0]
    allowed = " or ".join(found) if found else f"one of {', '.join(NAMES)}"
    raise ValueError(
        f"{model} loads with {auto_class}, for which {'several evaluations fit' if found else 'none is known'}: name "
        f"{allowed}, for example hf_tokaccel evaluate {(found or NAMES)[0]} --model {model}"
    )
