"""GFLOPs: of a call, and from shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.inference_mode()
def count_gflops(function: Callable[[Tensor], object], pixel_values: Tensor) -> float:
    """GFLOPs per image of a model call, as `torch.utils.flop_counter` counts them.

    A multiply and an add are two FLOPs; matrix products, convolutions and attention count, element-wise work does not.

    Args:
        function: Model or variant to call.
        pixel_values: One or more images (B, 3, h, w).
    """
    # The mathematical attention kernel is counted through its matrix products on every device and torch version; the
    # fused CPU kernel has a formula only in recent versions and would otherwise vanish silently.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(pixel_values)
    return counter.get_total_flops() / len(pixel_values) / 1e9


def gflops_of_shape(model: nn.Module, size: tuple[int, int]) -> float:
    """GFLOPs of one image (height, width) as `count_gflops` counts, on tensors that have shapes only.

    Models that look at values are run for real, which gives the same number more slowly.
    """
    # Some hosts keep position embeddings of the last call: neither must fake ones stay nor real ones be met.
    _forget(model)
    with suppress(Exception):
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        device = next(iter(tensors.values())).device
        with fake:
            shapes = {name: fake.from_tensor(tensor) for name, tensor in tensors.items()}
            images = torch.empty(1, 3, *size, device=device)
            return count_gflops(lambda x: functional_call(model, shapes, kwargs={"pixel_values": x}), images)
    _forget(model)
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
    return count_gflops(lambda x: model(pixel_values=x), images)


def _forget(model: nn.Module) -> None:
    for module in model.modules():
        for name in [name for name in module.__dict__ if name.endswith("_cached")]:
            delattr(module, name)
