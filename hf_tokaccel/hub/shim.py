"""Folders that load with AutoModel: the shim that leads `trust_remote_code=True` to this package."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..atomic import FRESH, move_files, write_text
from ..upstream import auto_classes, auto_models

SHIM_NAME = "tokaccel_hub"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def auto_map(model: Any) -> dict[str, str]:
    """`auto_map` of config.json: which Auto class loads which class through the shim."""
    config = type(model.config)
    names = {"AutoConfig": config.__name__}
    for auto_class in auto_classes():
        if type(model) in auto_models(auto_class, config):
            names[auto_class.__name__] = type(model).__name__
    return {auto_class: f"{SHIM_NAME}.{name}" for auto_class, name in sorted(names.items())}


def shim_source(model: Any) -> str:
    """The one import line that Transformers executes; it asks for the package if that is not installed."""
    names = sorted({type(model.config).__name__, type(model).__name__})
    return f"from {type(model).__module__} import {', '.join(names)}  # noqa: F401\n"


def save_with_shim(model: Any, save_pretrained: Callable, folder: Any, *args: Any, **kwargs: Any) -> None:
    """Runs the native `save_pretrained` and adds the shim.

    All is written beside what is there, and renamed when it is complete, config.json last. A process that dies leaves
    whole files of the model that was there before, and a model that is saved over its own file may still read it.
    """
    model.config.auto_map = auto_map(model)
    folder = Path(folder)
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if not alone or folder.is_file() or kwargs.get("push_to_hub") or not kwargs.get("is_main_process", True):
        # A push uploads from inside of `save_pretrained`; and each process may write files of its own.
        if kwargs.get("is_main_process", True) and not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{SHIM_NAME}.py", shim_source(model))
        save_pretrained(folder, *args, **kwargs)
        return
    _save_whole(model, save_pretrained, folder, args, kwargs)


def _save_whole(model: Any, save_pretrained: Callable, folder: Path, args: tuple, kwargs: dict[str, Any]) -> None:
    fresh = folder / FRESH
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        save_pretrained(fresh, *args, **kwargs)
        write_text(fresh / f"{SHIM_NAME}.py", shim_source(model))
        written = {path.name for path in fresh.iterdir()}
        move_files(fresh, folder, last="config.json")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if any(map(_WEIGHTS.fullmatch, written)):
        # Of another number of files; loading would prefer the single one to the new ones.
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and path.name not in written:
                path.unlink()


class ShimMixin:
    """First base of a model class of ours that Transformers lacks: its folders load with AutoModel."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; the folder also loads with `trust_remote_code=True`, which needs hf_tokaccel."""
        save_with_shim(self, super().save_pretrained, save_directory, *args, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        result: Any = None,
        not_measured: bool = False,
        card: Any = None,
        processor: Any = None,
        **options: Any,
    ) -> Any:
        """Uploads weights, config, shim, image processor and model card as one commit.

        Args:
            repo_id: NAME or NAMESPACE/NAME.
            result: what the card tells: the `evaluation.Result` of this model, or the path of its result.json.
            not_measured: write a card that says that nothing was measured.
            card: a `huggingface_hub.ModelCard`, or the path of one, instead of a generated card.
            processor: uploaded beside the model; None takes the one from where the model was loaded, False none.
            options: as in Transformers: private, token, revision, create_pr, commit_message, commit_description,
                max_shard_size, tags.

        Returns:
            CommitInfo: what huggingface_hub says of the commit.

        Raises:
            ValueError: no results and no word that this is meant, results of another model or setting, no processor
                to be found, or no token.
            OSError: the Hub cannot be reached, or refuses.
        """
        from .upload import push_model

        values = {"result": result, "not_measured": not_measured, "card": card, "processor": processor}
        return push_model(self, repo_id, **values, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: Transformers would copy this package's source beside the weights; we save a shim instead."""
