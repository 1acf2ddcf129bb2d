"""`hf_tokaccel push`: a folder to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .frame import AsJson, app, console, print_json, user_errors


@app.command("push")
@user_errors()
def push(
    folder: Annotated[Path, typer.Argument(help="Written by `hf_tokaccel accelerate`.")],
    repo_id: Annotated[str, typer.Argument(help="NAMESPACE/NAME on the Hub, created if it does not exist.")],
    results: Annotated[
        Path | None,
        typer.Option(help="The result.json of this model's evaluation, for its card; default: that of the folder."),
    ] = None,
    not_measured: Annotated[
        bool, typer.Option("--not-measured", help="Publish a card that says that nothing was measured.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id that the weights come from; default: as the folder's card says.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights; default: as the folder's card says.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", show_envvar=True, help="Default: that of `hf auth login`.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to write.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    no_processor: Annotated[bool, typer.Option("--no-processor", help="The model needs no image processor.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload the folder of an accelerated model to the Hub, with a card made of its evaluation.

    Everything in the folder goes up as one commit: readers see all of it or nothing.

    \b
    hf_tokaccel push dpt-large-tokaccel me/dpt-large-tokaccel --results outputs/evaluate_depth/result.json
    hf_tokaccel push dpt-large-tokaccel me/dpt-large-tokaccel --private --not-measured
    """
    from ..hub.files import check_folder, prepare_card
    from ..hub.upload import push_folder

    check_folder(folder, processor=not no_processor)
    prepare_card(folder, repo_id, results, not_measured=not_measured, base_model=base_model, license=license)
    where = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
    commit = push_folder(folder, repo_id, **where)
    if as_json:
        print_json({"repo": str(commit.repo_url), "commit": commit.oid, "pull_request": commit.pr_url})
    else:
        console.print(f"Pushed {folder} to {commit.pr_url or commit.repo_url}, commit {commit.oid}.", markup=False)
