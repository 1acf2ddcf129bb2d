"""Any checkpoint of a supported model, by Hub id or folder, without saying its class: what the commands start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .checks import first_line
from .hosts.config import stored_accel
from .hosts.convert import to_native
from .hosts.modeling import AcceleratedModel
from .hub.files import load_processor
from .reference import REFERENCE_MODELS, reference_model_path
from .registry import accelerated_models_of, auto_models_of
from .upstream import is_auto_class

DTYPES = ("auto", "float32", "float16", "bfloat16")
# The first fusion layer of DPT and of its relatives has a residual unit that no forward calls; the released
# checkpoints, Intel/dpt-large among them, have no weights for it (Transformers issue 28292).
_NEVER_RUN = re.compile(r"(^|\.)fusion_stage\.layers\.0\.residual_layer1\.")


@dataclass
class Checkpoint:
    """What `load_checkpoint` gives.

    Attributes:
        model: Plain model, in evaluation mode.
        accel: Setting stored with the checkpoint as a plain dict, or None.
        processor: What turns images into the model's input, or None where the checkpoint has none.
        source: Hub id or folder that it came from.
    """

    model: PreTrainedModel
    accel: dict | None
    processor: Any | None
    source: str

    @property
    def base_model(self) -> str | None:
        """The Hub id, None for a folder."""
        return None if Path(self.source).is_dir() else self.source


def resolve_source(name: str | Path) -> str:
    """A Hub id or folder as it was given, and the folder for the name of a reference model such as "depth"."""
    return str(reference_model_path(str(name))) if str(name) in REFERENCE_MODELS else str(name)


def load_config(name: str | Path) -> PreTrainedConfig:
    """Configuration of a Hub id, a folder or a reference model.

    Raises:
        ValueError: Nothing to load there: unknown, no network, or a folder without config.json.
    """
    source = resolve_source(name)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"folder {source} has no config.json; give one that save_pretrained wrote, or a Hub id")
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model {source!r} cannot be loaded: {first_line(error)}; give a Hub id such as Intel/dpt-large, a "
            f"folder that save_pretrained wrote, or one of the models of this package: {', '.join(REFERENCE_MODELS)}"
        ) from error


def load_checkpoint(name: str | Path, *, auto_class: str | None = None, dtype: str = "auto") -> Checkpoint:
    """A plain model of the class that config.json names, with its processor and the setting stored with it.

    Args:
        name: Hub id, folder, or name of a reference model.
        auto_class: Name of an Auto class, or of a class of Transformers, in place of the one in config.json.
        dtype: One of `DTYPES`; auto keeps that of the checkpoint.

    Raises:
        ValueError: See `load_config`; and an unknown class or dtype, or weights that do not cover the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}; for example float32")
    config, source = load_config(name), resolve_source(name)
    cls = find_class(config, auto_class)
    # Shapes that do not fit are named below like weights that are missing.
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = cls.from_pretrained(source, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **options)
    except OSError as error:
        raise ValueError(f"model {source!r} is incomplete: {first_line(error)}") from error
    if missing := missing_weights(info):
        raise ValueError(
            f"{source!r} lacks {len(missing)} weights of {type(model).__name__}, for example {missing[0]}; name the "
            f"class that it was trained as with --auto-class: {', '.join(sorted(auto_classes_for(config)))}"
        )
    accel = stored_accel(model.config)
    if isinstance(model, AcceleratedModel) or accel is not None:
        model = to_native(model)
    return Checkpoint(model.eval(), accel, load_processor(source), source)


def find_class(config: PreTrainedConfig, auto_class: str | None = None) -> type:
    """The class to load a checkpoint with: the one named, or the one of `architectures` in config.json.

    Raises:
        ValueError: A name that Transformers does not know or that does not go with the type; or none is known.
    """
    usable = auto_classes_for(config)
    allowed = f"it must be one of {', '.join(sorted(usable))}, for example {min(usable, default='AutoModel')}"
    if auto_class is not None:
        cls = getattr(transformers, auto_class, None)
        is_auto = is_auto_class(cls)
        is_model = isinstance(cls, type) and issubclass(cls, PreTrainedModel)
        if (is_auto and auto_class not in usable) or not (is_auto or is_model):
            raise ValueError(f"class {auto_class!r} does not load model type {config.model_type!r}: {allowed}")
        return cls
    names = config.architectures or []
    known = {cls.__name__: cls for classes in auto_models_of(type(config)).values() for cls in classes}
    known |= {cls.__name__: cls for cls in accelerated_models_of(type(config))}
    for name in names:
        cls = known.get(name) or getattr(transformers, name, None)
        if cls is not None:
            return cls
    raise ValueError(
        f"config.json names {', '.join(names) or 'no class'} in architectures, which says nothing of how to load this "
        f"{config.model_type!r} model: give --auto-class; {allowed}"
    )


def auto_classes_for(config: PreTrainedConfig) -> list[str]:
    """Names of the Auto classes that load a configuration's type."""
    return [cls.__name__ for cls in auto_models_of(type(config))]


def missing_weights(info: dict) -> list[str]:
    """Weights that a model runs on and its checkpoint lacks, from the loading info of `from_pretrained`."""
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return sorted(key for key in lacking if not _NEVER_RUN.search(key))
