"""FLOPs of a model: a multiply and an add are two; matrix products, convolutions and attention count, nothing else.

PyTorch's counter finds the operators and the modules that they belong to. The formulas are ours, since its own differ
from version to version, and so do the operators that it takes apart before it looks for a formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..upstream import uncached

Formulas = Mapping[OpOverloadPacket, Callable[..., int]]


def _product(a: torch.Size, b: torch.Size, *_: Any, **__: Any) -> int:
    """Matrices (..., m, k) and (..., k, n): every element of the first meets a row of n."""
    return 2 * math.prod(a) * b[-1]


def _added_product(added: torch.Size, a: torch.Size, b: torch.Size, *_: Any, **__: Any) -> int:
    return _product(a, b)


def _convolution(
    x: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *_: Any,
    out_shape: torch.Size,
    **__: Any,
) -> int:
    """Every weight is used once per place of the output, or of the input where the convolution is transposed."""
    batch, _channels, *places = x if transposed else out_shape
    return 2 * batch * math.prod(places) * math.prod(weight)


FORMULAS: Formulas = {
    torch.ops.aten.mm: _product,
    torch.ops.aten.bmm: _product,
    torch.ops.aten._scaled_mm: _product,
    torch.ops.aten.addmm: _added_product,
    torch.ops.aten.baddbmm: _added_product,
    torch.ops.aten.convolution: _convolution,
}


@contextmanager
def flop_counter(others: Formulas | None = None) -> Iterator[FlopCounterMode]:
    """A context whose counter gives the FLOPs of what runs inside: `counter.get_total_flops()`.

    Args:
        others: What counts besides, for a published number that counts otherwise. A formula gets the operator's
            arguments, with a shape in place of each tensor, and `out_shape`.
    """
    formulas = {**FORMULAS, **(others or {})}
    # Before 2.15 PyTorch takes an operator apart unless its overload, too, has a formula.
    overloads = {getattr(op, name): formula for op, formula in formulas.items() for name in op.overloads()}
    counter = FlopCounterMode(display=False, custom_mapping={**formulas, **overloads})
    counter.flop_registry = {op: counter.flop_registry[op] for op in (*formulas, *overloads)}  # none of its own
    # The mathematical attention kernel is counted through its matrix products on every device.
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


@torch.inference_mode()
def count_gflops(function: Callable[[Tensor], object], pixel_values: Tensor) -> float:
    """GFLOPs per image of a model call.

    A multiply and an add are two FLOPs; matrix products, convolutions and attention count, element-wise work does not,
    nor does resizing. The count does not depend on the version of PyTorch.

    Args:
        function: Model or variant to call.
        pixel_values: One or more images (B, 3, h, w).
    """
    with uncached(), flop_counter() as counter:
        function(pixel_values)
    return counter.get_total_flops() / len(pixel_values) / 1e9


def gflops_of_shape(
    model: nn.Module, size: tuple[int, int], inputs: Callable[[nn.Module, Tensor], dict[str, Any]] | None = None
) -> float:
    """GFLOPs of one image (height, width) as `count_gflops` counts, on tensors that have shapes only.

    Models that look at values are run for real, which gives the same number more slowly; not those on the meta device.

    Args:
        model: on any device, the meta device too.
        size: of the image in pixels.
        inputs: what the model is called with, given it and the image (1, 3, height, width).
    """
    make = inputs or (lambda model, images: {"pixel_values": images})
    parameter = next(model.parameters())
    is_meta = parameter.is_meta
    # Autocast, which clustering asks for, knows no meta device.
    device = torch.device("cpu") if is_meta else parameter.device
    # Some hosts keep position embeddings of the last call: neither must fake ones stay nor real ones be met.
    _forget(model)
    with suppress(Exception) if not is_meta else nullcontext(), _counting(model, device) as (counter, tensors):
        images = torch.empty(1, 3, *size, device=device, dtype=parameter.dtype)
        functional_call(model, tensors, kwargs=make(model, images))
        return counter.get_total_flops() / 1e9
    _forget(model)
    images = torch.zeros(1, 3, *size, device=device, dtype=parameter.dtype)
    return count_gflops(lambda x: model(**make(model, x)), images)


@contextmanager
def _counting(model: nn.Module, device: torch.device) -> Iterator[tuple[FlopCounterMode, dict[str, Tensor]]]:
    """A counter of what runs on the tensors that are given, of the shapes of the model's."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.inference_mode(), fake, uncached():
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
        }
        with flop_counter() as counter:
            yield counter, tensors


def _forget(model: nn.Module) -> None:
    for module in model.modules():
        for name in [name for name in module.__dict__ if name.endswith("_cached")]:
            delattr(module, name)
