"""Folders of accelerated models on their way to the Hub: what must be in them, their card, one commit for all."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from .card import NOT_MEASURED, RESULT_NAME, build_card, read_result, setting_of
from .evaluation import Result
from .loading import first_line, load_processor
from .version import __version__

CARD = "README.md"
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def check_folder(folder: str | Path, processor: bool = True) -> PreTrainedConfig:
    """The configuration of a folder that is whole.

    Args:
        folder: Written by `save_pretrained` or `hf_tokaccel accelerate`.
        processor: Whether a processor must be in it.

    Raises:
        ValueError: No such folder, not an accelerated model, or weights or processor that are missing or cut short.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one that `hf_tokaccel accelerate MODEL --out DIR` wrote")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a folder that `hf_tokaccel accelerate` wrote")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/config.json cannot be loaded: {first_line(error)}") from error
    if setting_of(config) is None:
        raise ValueError(
            f"{folder} holds a plain {config.model_type!r} model; give it a setting first, for example "
            f"`hf_tokaccel accelerate {folder} --out {folder}-tokaccel`"
        )
    _check_weights(folder)
    if processor and not any((folder / name).is_file() for name in PROCESSORS):
        raise ValueError(
            f"{folder} has no {PROCESSORS[0]}, without which nobody can prepare images for the model: add it with "
            f"AutoImageProcessor.from_pretrained(BASE).save_pretrained({str(folder)!r}), or say --no-processor"
        )
    return config


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: save the model again with save_pretrained")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged ({error}): save the model again") from error


def write_card(
    folder: str | Path,
    name: str,
    result: Result | str | Path | None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
) -> ModelCard:
    """Writes README.md into the folder of a model; base model and licence of a card that is there already stay.

    Args:
        folder: Of the model.
        name: Hub id or folder that readers shall load.
        result: See `read_result`; None for a card that says that nothing was measured.
        base_model: See `build_card`.
        license: See `build_card`.
        tags: See `build_card`.

    Raises:
        ValueError: See `build_card`.
    """
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    before = read_card(folder)
    if before is not None:
        base_model = base_model or before.data.base_model
        license = license or before.data.license
    processor = "AutoProcessor" if (folder / PROCESSORS[1]).is_file() else "AutoImageProcessor"
    result = None if result is None else read_result(result)
    values = {"base_model": base_model, "license": license, "tags": tags or [], "processor": processor}
    card = build_card(config, name, result, **values)
    card.save(folder / CARD)
    return card


def read_card(folder: str | Path) -> ModelCard | None:
    """The card of a folder, None where there is none."""
    path = Path(folder) / CARD
    return ModelCard.load(path) if path.is_file() else None


def prepare_card(
    folder: str | Path,
    name: str,
    result: Result | str | Path | None,
    *,
    not_measured: bool = False,
    **options: Any,
) -> None:
    """The card that a folder goes to the Hub with: from results, or the one in it if that was written by hand.

    Args:
        folder: Of the model.
        name: Hub id.
        result: What was measured; None takes `result.json` of the folder.
        not_measured: Write a card without results.
        options: Of `write_card`.

    Raises:
        ValueError: Nothing was measured, and `not_measured` does not say that this is meant.
    """
    folder = Path(folder)
    if result is not None and not_measured:
        raise ValueError("--results and --not-measured exclude each other: give one of them")
    if result is None and not not_measured and (folder / RESULT_NAME).is_file():
        result = folder / RESULT_NAME
    card = read_card(folder)
    if result is None and not not_measured and card is not None and NOT_MEASURED not in card.text:
        return
    if result is None and not not_measured:
        raise ValueError(
            f"{folder} has no results for its card: measure with `hf_tokaccel evaluate {folder} --output {folder}`, "
            "or give --results FILE, or --not-measured for a card that says so"
        )
    write_card(folder, name, result, **options)


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
        raise ValueError(
            "no token for the Hub: run `hf auth login`, set HF_TOKEN, or give --token (in Python: token=)"
        )
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
        raise ValueError(
            f"{repo_id} has no results for its card: give result='outputs/evaluate_depth/result.json' or wherever the "
            "evaluation of this model was written, card=... for a card of your own, or not_measured=True"
        )
    source = model.config._name_or_path
    if processor is None:
        processor = load_processor(source) if source else None
        if processor is None:
            raise ValueError(
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
