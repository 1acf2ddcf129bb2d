"""Dynamic int8 quantisation on the CPU, together with clusters: fewer tokens, and cheaper work for each."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import quantize_dynamic
from transformers import PreTrainedModel


def quantize_int8(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model whose linear layers multiply in int8: weights once, inputs in every call by their range.

    Quantise first and `hf_tokaccel.accelerate` the result, or the other way round: both give the same model.
    Clustering and reconstruction stay in float32. For inference on the CPU; such a model cannot be saved.

    Args:
        model: native or accelerated, float32, on the CPU.

    Raises:
        ValueError: a model elsewhere or of another dtype, or one without a linear layer.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise ValueError(
            f"a model of {str(parameter.dtype).removeprefix('torch.')} on {parameter.device} cannot be quantised so: "
            "dynamic int8 is for float32 models on the CPU, for example model.float().cpu(); on a GPU use bfloat16"
        )
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no linear layer to quantise, for example run it in bfloat16")
    with warnings.catch_warnings():
        # PyTorch announces that this will move to torchao.
        warnings.filterwarnings("ignore", message=".*deprecated")
        return quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8, inplace=True)


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has linear layers of `quantize_int8`."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
