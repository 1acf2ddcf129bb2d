"""Any checkpoint of a supported model, by Hub id or folder, without saying its class: what the commands start from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from .checks import LARGEST, UserError, brief, did_you_mean, first_line, said_by
from .discovery import PREFIX
from .hosts.config import stored_accel
from .hosts.convert import to_native
from .hosts.modeling import AcceleratedModel
from .hub.card import architectures_of
from .hub.files import check_weights, load_processor
from .reference import REFERENCE_MODELS, reference_model_path
from .registry import accelerated_models_of, auto_models_of
from .results.files import read_json
from .upstream import is_auto_class

DTYPES = ("auto", "float32", "float16", "bfloat16")
# The first fusion layer of DPT and of its relatives has a residual unit that no forward calls; the released
# checkpoints, Intel/dpt-large among them, have no weights for it (Transformers issue 28292).
_NEVER_RUN = re.compile(r"(^|\.)fusion_stage\.layers\.0\.residual_layer1\.")


@dataclass
class Checkpoint:
    """What `load_checkpoint` gives.

    Attributes:
        model: Plain model, in evaluation mode, without gradients.
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


@dataclass(frozen=True)
class SomeTypes:
    """Those configuration classes of a mapping whose native model type passes; families may register later.

    Attributes:
        mapping: Of an Auto class.
        passes: Says so of a native model type.
    """

    mapping: Mapping[type, Any]
    passes: Callable[[str], bool]

    def __contains__(self, config: type) -> bool:
        return config in self.mapping and self.passes(config.model_type.removeprefix(PREFIX))

    def __iter__(self) -> Iterator[type]:
        return (config for config in self.mapping if config in self)


@dataclass(frozen=True)
class ModelKind:
    """Models of one purpose, whatever their architecture.

    Attributes:
        autos: Auto classes that load them, each with a collection of the configuration classes that are meant.
        lacks: What other models do not do, for error messages.
        trained_for: What the weights must have been trained for, likewise.
        example: A checkpoint on the Hub.
    """

    autos: Mapping[type, Any]
    lacks: str
    trained_for: str
    example: str

    def auto_class(self, config: PreTrainedConfig, source: str) -> type:
        """The Auto class for a configuration; of several the one whose class config.json names, else the first.

        Raises:
            ValueError: The configuration is of another kind.
        """
        fitting = [auto for auto, configs in self.autos.items() if type(config) in configs]
        if not fitting:
            types = sorted({c.model_type for configs in self.autos.values() for c in configs})
            raise UserError(
                f"model {source!r} is of type {config.model_type!r}, which {self.lacks}; types that do: "
                f"{', '.join(types)}"
            )
        models, named = auto_models_of(type(config)), set(architectures_of(config))
        exact = [auto for auto in fitting if named & {cls.__name__ for cls in models.get(auto, ())}]
        return (exact or fitting)[0]


def resolve_source(name: str | Path) -> str:
    """A Hub id or folder as it was given, and the folder for the name of a reference model such as "depth"."""
    return str(reference_model_path(str(name))) if str(name) in REFERENCE_MODELS else str(name)


def load_config(name: str | Path, example: str = "Intel/dpt-large", also: Collection[str] = ()) -> PreTrainedConfig:
    """Configuration of a Hub id, a folder or a reference model.

    Args:
        name: Of one of these.
        example: A Hub id, for errors.
        also: Names that the user might have meant beside those of the reference models.

    Raises:
        ValueError: Nothing to load there: unknown, no network, or a folder without config.json.
    """
    source = resolve_source(name)
    folder = Path(source)
    if folder.is_dir():
        return read_config(folder)
    advice = (
        f"give a Hub id such as {example}, a folder that save_pretrained wrote, or one of the models of this package: "
        f"{', '.join(REFERENCE_MODELS)}"
    )
    if folder.is_file():
        raise UserError(f"model {source!r} is a file; {advice}")
    near = did_you_mean(source, [*REFERENCE_MODELS, *also])
    # What is not OWNER/NAME needs no network to be known as wrong.
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        raise UserError(f"folder {source!r} does not exist; {advice}")
    if "/" not in source and near:
        raise UserError(f"model {source!r} is not known{near}; {advice}")
    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:  # Of the network, of the Hub, or whatever a file there leads to.
        raise UserError(f"model {source!r} cannot be loaded: {said_by(error)}; {advice}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """Configuration of a folder.

    Raises:
        ValueError: There is no config.json, or none that a configuration can be made of.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"folder {folder} has no config.json; give one that save_pretrained wrote, or a Hub id")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {brief(values, 60)}, not the fields of a configuration")
    if (wrong := _beyond_tensors(values)) is not None:
        raise UserError(f"{path}: {wrong} is a number that no size of a model can be")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # Transformers checks some fields, and computes with others.
        raise UserError(f"{path} is not valid: {said_by(error)}") from error


def _beyond_tensors(values: Any) -> str | None:
    """Name of a field with a whole number that is too large for a size; some would be counted up to."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        if isinstance(value, int) and abs(value) > LARGEST:
            return str(key)
        if (found := _beyond_tensors(value)) is not None:
            return found
    return None


def load_checkpoint(
    name: str | Path,
    *,
    kind: ModelKind | None = None,
    auto_class: str | None = None,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """A plain model of the class that config.json names, with its processor and the setting stored with it.

    Args:
        name: Hub id, folder, or name of a reference model.
        kind: What the model must be; it is then loaded as that, whatever class config.json names, and its image
            processor must be there.
        auto_class: Name of an Auto class, or of a class of Transformers, in place of the one in config.json.
        dtype: One of `DTYPES`; auto keeps that of the checkpoint.
        device: Where the model goes.

    Raises:
        ValueError: See `load_config`; and an unknown class or dtype, a model of another kind, no image processor where
            there must be one, or weights that do not cover the model.
    """
    if dtype not in DTYPES:
        near = did_you_mean(dtype, DTYPES)
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}; for example float32{near}")
    config = load_config(name) if kind is None else load_config(name, kind.example)
    source = resolve_source(name)
    cls = find_class(config, auto_class) if kind is None else kind.auto_class(config, source)
    # Shapes that do not fit are named below like weights that are missing.
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if Path(source).is_dir():
        check_weights(Path(source))
    try:
        processor = load_processor(source) if kind is None else AutoImageProcessor.from_pretrained(source)
        model, info = cls.from_pretrained(source, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **options)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"model {source!r} is incomplete: {first_line(error)}") from error
    except Exception as error:  # Whatever values of config.json lead to, such as a division by a patch size of 0.
        raise UserError(
            f"model {source!r} cannot be made of its files: {said_by(error)}; --debug (in Python: the traceback) "
            "shows where"
        ) from error
    if missing := missing_weights(info):
        if kind is None:
            what = type(model).__name__
            classes = ", ".join(sorted(auto_classes_for(config)))
            remedy = f"name the class that it was trained as with --auto-class: {classes}"
        else:
            what = f"a {kind.trained_for} model"
            remedy = f"give one that was trained for {kind.trained_for}, such as {kind.example}"
        raise UserError(f"model {source!r} lacks {len(missing)} weights of {what}, for example {missing[0]}; {remedy}")
    accel = stored_accel(model.config)
    if isinstance(model, AcceleratedModel) or accel is not None:
        model = to_native(model)
    # Nothing is trained; and the counter of FLOPs fails on parameters with gradients that modules hand on.
    return Checkpoint(model.eval().requires_grad_(False).to(device), accel, processor, source)


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
            near = did_you_mean(auto_class, usable)
            raise UserError(f"class {auto_class!r} does not load model type {config.model_type!r}{near}: {allowed}")
        return cls
    names = architectures_of(config)
    known = {cls.__name__: cls for classes in auto_models_of(type(config)).values() for cls in classes}
    known |= {cls.__name__: cls for cls in accelerated_models_of(type(config))}
    for name in names:
        cls = known.get(name) or getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    path = f"{config.name_or_path}/config.json" if config.name_or_path else "config.json"
    raise UserError(
        f"{path} names {', '.join(names) or 'no class'} in architectures, which says nothing of how to load this "
        f"{config.model_type!r} model: give --auto-class; {allowed}"
    )


def auto_classes_for(config: PreTrainedConfig) -> list[str]:
    """Names of the Auto classes that load a configuration's type."""
    return [cls.__name__ for cls in auto_models_of(type(config))]


def missing_weights(info: dict) -> list[str]:
    """Weights that a model runs on and its checkpoint lacks, from the loading info of `from_pretrained`."""
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return sorted(key for key in lacking if not _NEVER_RUN.search(key))
