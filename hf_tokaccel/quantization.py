"""Dynamic int8 quantisation on the CPU, together with clusters: fewer tokens, and cheaper work for each."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import quantize_dynamic
from transformers import PreTrainedModel

from .checks import UserError, did_you_mean

BACKENDS = ("torch", "torchao")


def quantize_int8(model: PreTrainedModel, backend: str = "torch") -> PreTrainedModel:
    """A copy of a model whose linear layers multiply in int8: weights once, inputs in every call by their range.

    Quantise first and `hf_tokaccel.accelerate` the result, or the other way round: both give the same model.
    Clustering and reconstruction stay in float32. For inference on the CPU; such a model cannot be saved.

    Args:
        model: native or accelerated, float32, on the CPU.
        backend: "torch" is `torch.ao.quantization.quantize_dynamic`, which is quick as it is and cannot be compiled;
            "torchao" is that package's, which has to be compiled to be quick.

    Raises:
        ValueError: an unknown backend or one that is not installed, a model elsewhere or of another dtype, or one
            without a linear layer.
    """
    check_backend(backend)
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise UserError(
            f"a model of {str(parameter.dtype).removeprefix('torch.')} on {parameter.device} cannot be quantised so: "
            "dynamic int8 is for float32 models on the CPU, for example model.float().cpu(); on a GPU use bfloat16"
        )
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise UserError(f"{type(model).__name__} has no linear layer to quantise, for example run it in bfloat16")
    if backend == "torchao":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantized = copy.deepcopy(model)
        quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
        return quantized
    with warnings.catch_warnings():
        # PyTorch announces that this will move to torchao.
        warnings.filterwarnings("ignore", message=".*deprecated")
        return quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8, inplace=True)


def check_backend(backend: str) -> None:
    """Raises ValueError for a backend of `quantize_int8` that is unknown or not installed."""
    if backend not in BACKENDS:
        near = did_you_mean(backend, BACKENDS)
        raise UserError(f"backend={backend!r} must be one of {', '.join(BACKENDS)}; for example torch{near}")
    if backend == "torchao" and importlib.util.find_spec("torchao") is None:
        raise UserError(
            "backend='torchao' needs the package torchao, which is not installed: pip install torchao, or take "
            "backend='torch'"
        )


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has linear layers of `quantize_int8`."""
    linear = [module for module in model.modules() if isinstance(module, (nn.Linear, QuantizedLinear))]
    return any(
        isinstance(module, QuantizedLinear) or type(module.weight).__module__.startswith("torchao.")
        for module in linear
    )
