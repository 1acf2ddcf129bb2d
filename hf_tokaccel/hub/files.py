"""Folders of accelerated models: what must be in them, their image processor and their card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedConfig

from ..checks import UserError, first_line, said_by
from ..results.files import read_json
from ..results.rows import Result
from .card import NOT_MEASURED, RESULT_NAME, build_card, read_result, setting_of

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
        raise UserError(f"{folder} is not a folder; give one that `hf_tokaccel accelerate MODEL --out DIR` wrote")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a folder that `hf_tokaccel accelerate` wrote")
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # Transformers checks some fields, and computes with others.
        raise UserError(f"{folder}/config.json cannot be loaded: {said_by(error)}") from error
    if setting_of(config) is None:
        raise UserError(
            f"{folder} holds a plain {config.model_type!r} model; give it a setting first, for example "
            f"`hf_tokaccel accelerate {folder} --out {folder}-tokaccel`"
        )
    check_weights(folder, needed=True)
    if processor and not any((folder / name).is_file() for name in PROCESSORS):
        raise UserError(
            f"{folder} has no {PROCESSORS[0]}, without which nobody can prepare images for the model: add it with "
            f"AutoImageProcessor.from_pretrained(BASE).save_pretrained({str(folder)!r}), or say --no-processor"
        )
    return config


def check_weights(folder: Path, needed: bool = False) -> None:
    """Raises ValueError where files of weights are damaged or cut short, or an index names one that is not there.

    Args:
        folder: Of the model.
        needed: Whether there have to be files in the format of safetensors.
    """
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file() and not (folder / names[0]).is_file():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index} has no weight_map from weights to files: save the model again")
        names, needed = sorted(set(weight_map.values())), True
    for name in names:
        if not (folder / name).is_file():
            if needed:
                raise UserError(f"{folder} has no {name}: save the model again with save_pretrained")
            continue
        try:
            with safe_open(folder / name, "pt"):
                pass
        except Exception as error:  # Of safetensors, and of what it calls.
            raise UserError(f"{folder / name} is damaged ({first_line(error)}): save the model again") from error


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
        raise UserError("--results and --not-measured exclude each other: give one of them")
    if result is None and not not_measured and (folder / RESULT_NAME).is_file():
        result = folder / RESULT_NAME
    card = read_card(folder)
    if result is None and not not_measured and card is not None and NOT_MEASURED not in card.text:
        return
    if result is None and not not_measured:
        raise UserError(
            f"{folder} has no results for its card: measure with `hf_tokaccel evaluate {folder} --output {folder}`, "
            "or give --results FILE, or --not-measured for a card that says so"
        )
    write_card(folder, name, result, **options)


def load_processor(source: str) -> Any | None:
    """Processor or image processor of a folder or Hub id; None where it has none.

    Raises:
        ValueError: A folder has one that cannot be loaded.
    """
    failed = None
    for auto in (AutoProcessor, AutoImageProcessor):
        try:
            processor = auto.from_pretrained(source)
        except Exception as error:  # Of a file that is not there, or that holds anything.
            failed = error
            continue
        # Without a processor of its own, AutoProcessor hands out the tokenizer where there is one.
        if hasattr(processor, "image_processor") or hasattr(processor, "image_mean"):
            return processor
    for path in (Path(source) / name for name in PROCESSORS[:2]):
        if failed is not None and path.is_file():
            raise UserError(f"{path} cannot be loaded: {said_by(failed)}") from failed
    return None
