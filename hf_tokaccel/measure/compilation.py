"""`torch.compile` as measurements use it."""

from __future__ import annotations

import torch
from torch import nn

from ..checks import UserError, did_you_mean


def compile_model(model: nn.Module, backend: str = "inductor", mode: str | None = None) -> nn.Module:
    """`torch.compile` for static shapes, with room for many variants of one model class.

    Args:
        model: or a function.
        backend: that compiles.
        mode: of the inductor, such as reduce-overhead, which replays CUDA graphs.

    Raises:
        ValueError: An unknown backend.
    """
    backends = torch._dynamo.list_backends(exclude_tags=())
    if backend not in backends:
        near = did_you_mean(backend, backends)
        raise UserError(
            f"compile backend {backend!r} must be one of {', '.join(backends)}; for example inductor{near}"
        )
    # The limit counts all objects that share one forward, and each variant is one.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    return torch.compile(model, backend=backend, mode=mode, dynamic=False)
