"""Export to ONNX and to `torch.export`, with a check of what was written against the eager model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .checks import UserError, did_you_mean
from .images import run_once

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# Of the largest output: ONNX Runtime fuses and reorders float32 arithmetic.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """What `export_model` wrote.

    Attributes:
        path: of the file; a large ONNX model has its weights in a second file beside it.
        format: `"onnx"` or `"torch"`.
        inputs: shape of the images that the graph takes.
        outputs: shapes by name, in the order of the graph's outputs.
        difference: the largest from eager on images that it was not exported with, relative to the largest output.
    """

    path: Path
    format: str
    inputs: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    difference: float


class _Plain(nn.Module):
    """A model as a graph sees it: images in, a tuple of tensors out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.model(pixel_values=pixel_values)).values())


def _tensors(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by name; those of a tuple are numbered."""
    found: dict[str, Tensor] = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}_{i}": part for i, part in enumerate(value) if isinstance(part, Tensor)}
    return found


@torch.no_grad()
def export_model(
    model: PreTrainedModel, images: Tensor, path: str | Path, format: str = "onnx", *, check: bool = True
) -> Exported:
    """Write the graph of a model for images of one shape, and compare what was written with the eager model.

    Args:
        model: accelerated or not; on the CPU.
        images: (B, 3, h, w); the graph takes this shape only, since the number of clusters and tokens is part of it.
        path: file to write; ends in `.onnx` or `.pt2` as the format says.
        format: `"onnx"`, for ONNX Runtime and what reads ONNX, or `"torch"`, a `torch.export` program.
        check: load the file and run it; without, `difference` is nan.

    Raises:
        ValueError: an unknown format or a path that does not go with it; a model whose own code cannot be exported; a
            package that is missing; or a file whose output differs from eager.
    """
    path = Path(path)
    if format not in SUFFIXES:
        near = did_you_mean(format, SUFFIXES)
        raise UserError(f"format={format!r} must be one of {', '.join(SUFFIXES)}; for example onnx{near}")
    if path.suffix != SUFFIXES[format]:
        raise UserError(
            f"{path} must end in {SUFFIXES[format]} for format {format}, for example model{SUFFIXES[format]}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _Plain(model).eval()
    # Other images than those of the export: a constant that was baked in shows.
    probe = images.flip(-1) * 0.9 + 0.05
    expected = _tensors(run_once(model, probe))
    write = _write_onnx if format == "onnx" else _write_program
    try:
        write(plain, images, path, list(expected))
    except ImportError as error:
        raise UserError(f"export to ONNX needs {error.name}: pip install onnx onnxscript onnxruntime") from error
    except Exception as error:  # Dynamo, the exporter and the decompositions have errors of their own.
        raise UserError(
            f"{type(model).__name__} cannot be exported to {format}: {str(error).strip().splitlines()[0][:300]}"
        ) from error
    run = _onnx_runtime if format == "onnx" else _run_program
    difference = _difference(run(path), probe, expected) if check else float("nan")
    if check and not difference <= TOLERANCE:
        raise UserError(
            f"{path} differs from the eager model by {difference:.1e} of its largest output, more than "
            f"{TOLERANCE:.0e}: do not use it, and please report this"
        )
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    return Exported(path, format, tuple(images.shape), shapes, difference)


def _write_onnx(plain: nn.Module, images: Tensor, path: Path, names: list[str]) -> None:
    import onnxscript  # noqa: F401  The exporter's own error hides that it is missing.

    program = torch.onnx.export(
        plain, (images,), input_names=["pixel_values"], output_names=names, dynamo=True, verbose=False
    )
    program.save(path)


def _write_program(plain: nn.Module, images: Tensor, path: Path, names: list[str]) -> None:
    torch.export.save(torch.export.export(plain, (images,)), path)


def _onnx_runtime(path: Path) -> Callable[[Tensor], list[Tensor]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path} is written but cannot be checked without onnxruntime: pip install onnxruntime, or --no-check"
        ) from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {"pixel_values": images.numpy()})]


def _run_program(path: Path) -> Callable[[Tensor], list[Tensor]]:
    module = torch.export.load(path).module()
    return lambda images: list(module(images))


def _difference(run: Callable[[Tensor], list[Tensor]], images: Tensor, expected: dict[str, Tensor]) -> float:
    actual = run(images)
    if [tuple(a.shape) for a in actual] != [tuple(e.shape) for e in expected.values()]:
        return float("inf")
    pairs = zip(actual, expected.values(), strict=True)
    return max(((a - e).abs().max() / e.abs().max().clamp(min=1e-12)).item() for a, e in pairs)
