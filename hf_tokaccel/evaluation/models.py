"""Models of Transformers as the evaluation sees them: loading, and what their configurations say."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor

from ..checkpoint import missing_weights
from ..checks import first_line
from ..hosts.config import stored_accel
from ..hosts.convert import to_native

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelKind:
    """What a script evaluates.

    Attributes:
        auto: Auto class that loads the models.
        mapping: Its configuration classes.
        lacks: What other models do not do, for error messages.
        trained_for: What the weights must have been trained for, likewise.
        example: A checkpoint on the Hub.
    """

    auto: type
    mapping: Container[type]
    lacks: str
    trained_for: str
    example: str


def load_model(name: str | Path, kind: ModelKind, *, dtype: str = "float32", device: torch.device | str = "cpu"):
    """Dense model, the accelerated setting stored with it (or None) and its image processor.

    Raises:
        ValueError: Nothing to load there, not a model of this kind, an unknown dtype, or weights that do not cover
            the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}; for example float32")
    name = str(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"model folder {name} has no config.json; give a folder written by save_pretrained or a Hub id"
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {name!r} cannot be loaded ({first_line(error)}); give a Hub id such as {kind.example} "
            "or a folder written by save_pretrained"
        ) from error
    if type(config) not in kind.mapping:
        types = sorted({c.model_type for c in kind.mapping})
        raise ValueError(
            f"model {name!r} is of type {config.model_type!r}, which {kind.lacks}; types that do: {', '.join(types)}"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        # Weights of another task may have the same names: they are named below like those that are missing.
        options = {"dtype": DTYPES[dtype], "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = kind.auto.from_pretrained(name, **options)
    except OSError as error:
        raise ValueError(f"model {name!r} is incomplete: {first_line(error)}") from error
    if missing := missing_weights(info):
        raise ValueError(
            f"model {name!r} lacks {len(missing)} weights of a {kind.trained_for} model, for example {missing[0]}; "
            f"give one that was trained for {kind.trained_for}, such as {kind.example}"
        )
    accel = stored_accel(config)
    dense = model if accel is None else to_native(model)
    # Nothing is trained; and the counter of FLOPs fails on parameters with gradients that modules hand on.
    return dense.eval().requires_grad_(False).to(device), accel, processor
