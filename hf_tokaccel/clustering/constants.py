"""Index tables that depend on sizes alone, made once per device instead of in every call.

On a GPU a table costs as many kernel launches as an iteration does. It is kept only where that is safe: graphs that
are traced or captured make their own, since what they allocate belongs to them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

# A model needs about five tables for each image size; the largest of 64k tokens takes 20 MB.
KEPT = 64


def constant(like: Tensor, make: Callable[..., Any], *sizes: Hashable) -> Any:
    """`make(*sizes, device)` for the device of `like`: tensors that nobody may write to.

    Threads and CUDA streams may share them.
    """
    if torch.compiler.is_compiling():
        return make(*sizes, like.device)
    # Fake tensors and other kinds have a world of their own.
    if type(like) is not Tensor or (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        return make(*sizes, like.device)
    return _kept(make, sizes, like.device)


def counting(like: Tensor, count: int) -> Tensor:
    """(count,): 0, 1, 2 and so on, which nobody may write to."""
    # While torch.jit.trace runs, sizes are tensors.
    if torch.compiler.is_compiling() or isinstance(count, Tensor):
        return torch.arange(count, device=like.device)
    # Every round counts to another number; they share what counts to the next power of two.
    return constant(like, _counted, 1 << count.bit_length())[:count]


def _counted(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


@functools.lru_cache(maxsize=KEPT)
def _kept(make: Callable[..., Any], sizes: tuple, device: torch.device) -> Any:
    # Not as a tensor of inference mode, which training could not use.
    with torch.inference_mode(False), torch.no_grad():
        made = make(*sizes, device)
    if device.type == "cuda":
        # Once: whoever comes next may be on another stream.
        torch.cuda.current_stream(device).synchronize()
    return made


# What torch.compile traces counts as exported there.
_ALWAYS_EXPORTING = torch.__version__ < "2.12"


def exporting() -> bool:
    """Whether a graph is being exported, rather than compiled for this machine."""
    if _ALWAYS_EXPORTING and torch.compiler.is_dynamo_compiling():
        return False
    return torch.compiler.is_exporting()
