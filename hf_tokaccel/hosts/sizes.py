"""Attention that weighs each key by the tokens that it stands for, in hosts that know nothing of it.

Transformers chooses an attention function by a name in the configuration that the attention module holds. Inside of a
block on clusters that name is ours, whatever the model runs: our function adds the sizes and then calls the model's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from ..checks import UserError
from ..clustering.adaptive import append_bias
from ..upstream import ALL_ATTENTION_FUNCTIONS, CompileableContextVar
from .change import change
from .fused import attend_fused, fuses

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


class _AmbientInputs(CompileableContextVar):
    """Dynamo of PyTorch 2.11 cannot trace `ContextVar.get`, which the base calls where nothing was set before."""

    def get(self) -> ClusterInputs | None:
        return self.global_var if torch.compiler.is_compiling() else super().get()


# Those of the block that runs, in this thread.
_ambient_inputs = _AmbientInputs("tokaccel_inputs")


@contextmanager
def inputs_of_clusters(bias: Tensor | None = None, places: Tensor | None = None) -> Iterator[None]:
    """The modules of a host that are called inside find these inputs; see `ClusterInputs`."""
    inputs = None if bias is None and places is None else ClusterInputs(bias, places)
    before = _ambient_inputs.get()
    token = _ambient_inputs.set(inputs)
    try:
        yield
    finally:
        # While compiling, `reset` forgets what was there before.
        if before is None:
            _ambient_inputs.reset(token)
        else:
            _ambient_inputs.set(before)


def current_inputs() -> ClusterInputs:
    """Those of the block that runs; empty outside of clusters."""
    return _ambient_inputs.get() or ClusterInputs(None, None)


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
    with inputs_of_clusters():
        if "flash" in name:
            return _attend_with_feature(attend, module, query, key, value, attention_mask, bias, kwargs)
        if name not in _MASKED:
            raise UserError(
                f"attn_implementation={name!r} is not valid with size_attention=True, since nothing is known of how "
                f"it takes a bias: use one of {', '.join(_MASKED)} or a flash kernel, for example "
                "attn_implementation='sdpa'; or size_attention=False."
            )
        if name == "sdpa" and attention_mask is None and fuses(query, kwargs):
            return attend_fused(query, key, value, bias, kwargs.get("scaling")), None
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


def _attend_with_feature(attend, module, query, key, value, attention_mask, bias, kwargs) -> tuple[Tensor, None]:
    """For kernels that take no mask: exact, with the width of a head padded to what they take."""
    if attention_mask is not None:
        raise UserError(
            "attention_mask is not valid with a flash kernel and size_attention=True: use attn_implementation='sdpa'."
        )
    width = query.shape[-1]
    scale = kwargs.get("scaling") or width**-0.5
    kwargs = {**kwargs, "scaling": scale}
    query, key = append_bias(query, key, bias, scale, _HEAD_MULTIPLE)
    value = F.pad(value, (0, query.shape[-1] - width))
    output, weights = attend(module, query, key, value, None, **kwargs)
    return output[..., :width], weights


AttentionInterface.register(_NAME, sized_attention)
