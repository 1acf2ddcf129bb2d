"""Attention with sizes by itself: one more feature, for kernels that take no mask, against a mask of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.timing import refused, with_graphs
from hf_tokaccel.functional import append_sizes, size_bias

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
QUICK = ("math",)
PREFIX = 1


def plain(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def masked(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=size_bias(sizes, PREFIX).to(q.dtype))


def appended(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    width = q.shape[-1]
    q, k = append_sizes(q, k, sizes, PREFIX)
    # The fused kernels want values as wide as queries.
    v = F.pad(v, (0, q.shape[-1] - width))
    return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(width))[..., :width]


FORMS: dict[str, Callable[..., Tensor]] = {"no sizes": plain, "mask": masked, "appended": appended}


def times(images: int, heads: int, keys: int, device: torch.device) -> dict[str, Any]:
    """By kernel and form: times, and the error to float64 where sizes count; or why it does not run."""
    generator = torch.Generator().manual_seed(0)
    shape = (images, heads, keys, 64)
    tensors = [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for _ in range(3)]
    sizes = torch.randint(1, 9, (images, keys - PREFIX), generator=generator).to(device)
    one = [x[:1].double() for x in tensors]
    expected = F.scaled_dot_product_attention(*one, attn_mask=size_bias(sizes[:1], PREFIX).double())
    found: dict[str, Any] = {}
    for kernel in BACKENDS if device.type == "cuda" else QUICK:
        calls = {}
        for form, function in FORMS.items():
            call = partial(_on, BACKENDS[kernel], function, *tensors, sizes)
            try:
                output = call()
            except RuntimeError as error:
                found[f"{kernel}, {form}"] = refused(error)
                continue
            calls[f"{kernel}, {form}"] = call
            if form != "no sizes":
                error = (output[:1].double() - expected).norm() / expected.norm()
                found[f"{kernel}, {form}"] = {"relative_error": error.item()}
        for name, row in with_graphs(calls, device).items() if calls else ():
            found[name] = found.get(name, {}) | row
    found["PyTorch's choice, mask"] = with_graphs({"mask": partial(masked, *tensors, sizes)}, device)["mask"]
    return found


def _on(backend: SDPBackend, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return function(*arguments)
