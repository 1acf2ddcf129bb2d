"""Attention that weighs each key by the tokens that it stands for, in hosts that know nothing of it.

Transformers chooses an attention function by a name in the configuration that the attention module holds. Inside of a
block on clusters that name is ours, whatever the model runs: our function adds the sizes and then calls the model's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from ..checks import UserError
from ..clustering.adaptive import append_bias
from ..upstream import ALL_ATTENTION_FUNCTIONS
from .change import change

_NAME = "tokaccel_sizes"
# What takes a bias as its mask; names with "flash" get it as one more feature of queries and keys.
_MASKED = ("eager", "sdpa", "flex_attention")
_HEAD_MULTIPLE = 8


class ClusterInputs(NamedTuple):
    """What a block on clusters gets besides its states, past the host's own code."""

    bias: Tensor | None
    """(B, 1, 1, keys) added to the logits of attention."""
    places: Tensor | None
    """(B, keys) token whose relative positions each key has."""


_NONE = ClusterInputs(None, None)


class _Ambient:
    """The inputs of the block that runs, in this thread; while a graph is traced, of the one trace that runs.

    Dynamo cannot trace a `ContextVar`, and each block on clusters asks several times, so it has to be quick.
    """

    def __init__(self) -> None:
        self.eager: ContextVar[ClusterInputs] = ContextVar("tokaccel_inputs", default=_NONE)
        self.traced = _NONE

    def get(self) -> ClusterInputs:
        return self.traced if torch.compiler.is_compiling() else self.eager.get()

    def put(self, inputs: ClusterInputs) -> None:
        if torch.compiler.is_compiling():
            self.traced = inputs
        else:
            self.eager.set(inputs)


_ambient = _Ambient()


def current_inputs() -> ClusterInputs:
    """Those of the block that runs; empty outside of clusters."""
    return _ambient.get()


def call_with_inputs(function: Callable, inputs: ClusterInputs, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Calls a function of the host whose modules find these inputs."""
    before = _ambient.get()
    _ambient.put(inputs)
    try:
        return function(*args, **kwargs)
    finally:
        _ambient.put(before)


class SizedConfig:
    """The configuration of a host as an attention module inside of a block on clusters sees it."""

    def __init__(self, config: Any, eager: Callable) -> None:
        self.host_config = config
        self.eager = eager

    @property
    def _attn_implementation(self) -> str:
        return self.host_config._attn_implementation if current_inputs().bias is None else _NAME

    def __getattr__(self, name: str) -> Any:
        if name in ("host_config", "eager"):  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.host_config, name)


def weigh_sizes(block: nn.Module) -> bool:
    """Lets the attention of a block take sizes; whether there was any that can."""
    found = False
    for module in block.modules():
        eager = getattr(importlib.import_module(type(module).__module__), "eager_attention_forward", None)
        if "Attention" in type(module).__name__ and eager is not None and "config" in vars(module):
            change(module, config=SizedConfig(module.config, eager))
            found = True
    return found


def sized_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as the model runs it, with the ambient sizes.

    Raises:
        ValueError: where the model's attention function takes no sizes.
    """
    bias, config = current_inputs().bias, module.config
    name = config.host_config._attn_implementation
    attend = config.eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    if name not in _MASKED:
        # Such functions read the name of what they run from the module.
        return call_with_inputs(
            _attend_otherwise,
            _NONE,
            (name, attend, module, query, key, value),
            {"attention_mask": attention_mask, "bias": bias, "others": kwargs},
        )
    mask = bias.to(query.dtype)
    if attention_mask is not None:
        is_choice = attention_mask.dtype == torch.bool
        mask = mask.masked_fill(~attention_mask, -math.inf) if is_choice else mask + attention_mask
    if name == "flex_attention":
        _check_flex(query.device)
        mask = mask.expand(-1, -1, query.shape[2], -1)
    return attend(module, query, key, value, mask, **kwargs)


def _check_flex(device: torch.device) -> None:
    # PyTorch 2.14 compiles flex attention with any tensor as the mask to code that ends the process on a CPU.
    if device.type == "cpu":
        raise UserError(
            "attn_implementation='flex_attention' is not valid with size_attention=True on a CPU, where PyTorch's "
            "kernel crashes with a bias: use attn_implementation='sdpa'; or size_attention=False."
        )


def _attend_otherwise(
    name: str,
    attend: Callable,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    bias: Tensor,
    others: dict[str, Any],
) -> tuple[Tensor, None]:
    """Flash kernels take no mask: exact, with the width of a head padded to what they take."""
    if "flash" not in name:
        raise UserError(
            f"attn_implementation={name!r} is not valid with size_attention=True, since nothing is known of how "
            f"it takes a bias: use one of {', '.join(_MASKED)} or a flash kernel, for example "
            "attn_implementation='sdpa'; or size_attention=False."
        )
    if attention_mask is not None:
        raise UserError(
            "attention_mask is not valid with a flash kernel and size_attention=True: use attn_implementation='sdpa'."
        )
    width = query.shape[-1]
    scale = others.get("scaling") or width**-0.5
    others = {**others, "scaling": scale}
    query, key = append_bias(query, key, bias, scale, _HEAD_MULTIPLE)
    value = F.pad(value, (0, query.shape[-1] - width))
    output, weights = attend(module, query, key, value, None, **others)
    return output[..., :width], weights


AttentionInterface.register(_NAME, sized_attention)
