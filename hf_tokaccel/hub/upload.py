"""Folders of accelerated models on their way to the Hub: one commit for all that is in them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..checks import UserError, first_line
from ..results.rows import Result
from ..version import __version__
from .files import CARD, load_processor, prepare_card


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Uploads a folder as one commit, so that readers see all of it or nothing.

    Args:
        folder: Checked by `check_folder`, with its card.
        repo_id: NAME or NAMESPACE/NAME; created if it does not exist.
        private: Whether a new repository is.
        token: Of the Hub; None takes that of `hf auth login` or HF_TOKEN.
        revision: Branch; created if it does not exist.
        create_pr: Open a pull request instead.
        commit_message: First line.
        commit_description: What follows it.

    Raises:
        ValueError: No token.
        OSError: The Hub cannot be reached, or refuses; nothing is visible then.
    """
    api = HfApi(library_name="hf_tokaccel", library_version=__version__)
    if token is False or (not isinstance(token, str) and get_token() is None):
        raise UserError("no token for the Hub: run `hf auth login`, set HF_TOKEN, or give --token (in Python: token=)")
    try:
        api.whoami(token=token)
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            ignore_patterns=[".*", "**/.*"],
        )
    except HfHubHTTPError:
        raise
    # A connection that breaks is an error of the HTTP library, and in an upload a RuntimeError around one.
    except (HTTPError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise OSError(
            f"upload to {repo_id} at {api.endpoint} failed ({first_line(cause)}); nothing of it can be seen there, so "
            "just run it again"
        ) from error


def push_model(
    model: Any,
    repo_id: str,
    *,
    result: Result | str | Path | None = None,
    not_measured: bool = False,
    card: ModelCard | str | Path | None = None,
    processor: Any = None,
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
    **options: Any,
) -> CommitInfo:
    """What `push_to_hub` of our models does; see `hub.ShimMixin.push_to_hub`."""
    if card is None and result is None and not not_measured:
        raise UserError(
            f"{repo_id} has no results for its card: give result='outputs/evaluate_depth/result.json' or wherever the "
            "evaluation of this model was written, card=... for a card of your own, or not_measured=True"
        )
    source = model.config.name_or_path
    if processor is None:
        processor = load_processor(source) if source else None
        if processor is None:
            raise UserError(
                f"no image processor was found at {source!r}, where this model was loaded from: give processor=..., "
                "or processor=False to upload none"
            )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
        if processor is not False:
            processor.save_pretrained(folder)
        if card is not None:
            text = str(card) if isinstance(card, ModelCard) else Path(card).read_text(encoding="utf-8")
            (Path(folder) / CARD).write_text(text, encoding="utf-8")
        else:
            base = source if source and not Path(source).is_dir() else None
            prepare_card(folder, repo_id, result, not_measured=not_measured, base_model=base, tags=tags)
        return push_folder(folder, repo_id, **options)
