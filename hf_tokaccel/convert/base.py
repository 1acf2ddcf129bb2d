"""What the converters of other code bases' checkpoints share."""

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checks import UserError

_LISTED = 5  # parameters that an error names


class ConversionError(UserError):
    """A file that cannot be converted, with the reason."""


@dataclass
class Conversion:
    """A converted checkpoint.

    Attributes:
        model: in evaluation mode.
        processor: the image processor that goes with it.
        notes: what was left out or assumed, for the user to read.
    """

    model: PreTrainedModel
    processor: Any
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Writes weights, config and image processor."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def read_checkpoint(path: Path, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """Parameters by name, also those under "model" or "state_dict"; only tensors and plain containers are unpickled.

    Args:
        path: the file.
        ignored: full names of classes derived from dict whose objects may be in it; they are read as plain ones.

    Raises:
        ConversionError: when the file cannot be read like that, or holds no parameters.
    """
    try:
        with torch.serialization.safe_globals([(OrderedDict, name) for name in ignored]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # Of the unpickler, of the archive, or of whatever the bytes lead to.
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ConversionError(
                f"{path} is not a PyTorch checkpoint, or it is damaged: {type(error).__name__}."
            ) from error
        raise ConversionError(
            f"{path} holds more than tensors ({code[1]}), which could run any code when it is loaded. If you trust "
            "its source, keep the weights alone: torch.save({'model': torch.load(path, weights_only=False)['model']}, "
            "'weights.pth')."
        ) from error
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = some(list(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
        raise ConversionError(f"{path} holds no parameters under 'model', but: {found or 'nothing'}.")
    return dict(content)


def fill_model(
    model: nn.Module, state: Mapping[str, Tensor], against: str, shapes_from: str, optional: Collection[str] = ()
) -> None:
    """Gives a model all its parameters and buffers, under its own names.

    Args:
        model: to fill.
        state: what a checkpoint holds, under the model's names.
        against: what a checkpoint that does not fit is said not to do, with its name.
        shapes_from: where the model's shapes come from, for the same message.
        optional: names that may be missing.

    Raises:
        ConversionError: when one is missing, unknown, or of another shape.
    """
    expected = {name: value.shape for name, value in model.state_dict().items()}
    problems = {
        "lacks": [name for name in expected if name not in state and name not in optional],
        "does not fit the model with": [name for name in state if name not in expected],
        f"has other shapes than {shapes_from} for": [
            f"{name} ({tuple(value.shape)} instead of {tuple(expected[name])})"
            for name, value in state.items()
            if name in expected and value.shape != expected[name]
        ],
    }
    found = "; it ".join(f"{what} {some(names)}" for what, names in problems.items() if names)
    if found:
        raise ConversionError(f"{against} (names as in the converted model): it {found}.")
    model.load_state_dict(state, strict=False)


def some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
