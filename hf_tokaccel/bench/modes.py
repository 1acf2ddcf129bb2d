"""In what ways a model can run: attention kernel, number format, compiled or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from ..auto import accelerate
from ..checks import UserError, did_you_mean
from ..measure.compilation import compile_model
from ..quantization import check_backend, quantize_int8
from ..upstream import can_set_attention

ATTENTIONS = ("sdpa", "eager")
INT8 = {"int8": "torch", "int8-torchao": "torchao"}  # backends of quantize_int8
DTYPES = ("float32", "bfloat16", "float16", *INT8)
COMPILES = ("compile", "reduce-overhead")
EVERY_MODE = tuple(f"{d},{a}{c}" for d in DTYPES[:2] for a in ATTENTIONS for c in ("", ",compile"))


@dataclass(frozen=True)
class Mode:
    """One way to run.

    Attributes:
        dtype: one of `DTYPES`; int8 and int8-torchao are dynamic quantisation on the CPU.
        attention: one of `ATTENTIONS`; sdpa is PyTorch's fused kernel.
        compile: None, or one of `COMPILES`: `torch.compile`, on a GPU with CUDA graphs.
        backend: of `torch.compile`.
    """

    dtype: str = "float32"
    attention: str = "sdpa"
    compile: str | None = None
    backend: str = "inductor"

    @property
    def graphs(self) -> bool:
        """Whether calls replay CUDA graphs."""
        return self.compile == "reduce-overhead"

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.dtype, self.attention, self.compile)))

    def check(self, device: torch.device) -> None:
        """Raises ValueError where a device cannot run it."""
        if self.graphs and device.type != "cuda":
            raise UserError(f"mode {self.name!r} needs a GPU for its CUDA graphs; on {device.type} use compile")
        if self.dtype in INT8 and device.type != "cpu":
            raise UserError(f"mode {self.name!r} is for the CPU; on {device.type} use bfloat16")
        if self.dtype in INT8:
            check_backend(INT8[self.dtype])

    def base(self, model: PreTrainedModel) -> PreTrainedModel:
        """The dense model in this number format, with this attention; tensors are shared where the format is."""
        if self.dtype in INT8:
            model = quantize_int8(model, INT8[self.dtype])
        elif next(model.parameters()).dtype != (dtype := getattr(torch, self.dtype)):
            model = copy.deepcopy(model).to(dtype)
        # Module objects of its own: how attention runs is kept in their configuration.
        model = accelerate(model, None)
        # Inner models first: a head that has no attention of its own refuses, and would for all of them.
        for part in reversed(list(model.modules())):
            if isinstance(part, PreTrainedModel) and can_set_attention(part, self.attention):
                part.set_attn_implementation(self.attention)
        return model

    def check_attention(self, model: PreTrainedModel, call: Callable[[], Any]) -> None:
        """Raises ValueError where a call of a model does not run the attention of this mode.

        Some hosts choose theirs when they are built, and setting another changes a name only.
        """
        with _FusedCalls() as seen:
            call()
        if self.attention == "sdpa" and not seen.count:
            raise UserError(f"{type(model).__name__} has no SDPA attention: use mode eager, such as float32,eager")
        if self.attention == "eager" and seen.count:
            raise UserError(
                f"{type(model).__name__} cannot be switched to eager attention once it is built: leave mode "
                f"{self.name!r} out, for example --mode {self.dtype},sdpa"
            )

    def compiled(self, model: Any) -> Any:
        """A model or function as this mode runs it."""
        if self.compile is None:
            return model
        if self.graphs:
            return compile_model(model, mode="reduce-overhead")
        return compile_model(model, self.backend)


class _FusedCalls(TorchFunctionMode):
    """Counts calls of the fused attention."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def parse_mode(text: str, backend: str = "inductor") -> Mode:
    """A mode from words in any order, such as `bfloat16,sdpa,compile`; what is left out is as in `Mode()`.

    Raises:
        ValueError: an unknown word, or two of a kind.
    """
    choices = {"dtype": DTYPES, "attention": ATTENTIONS, "compile": COMPILES}
    values: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        kind = next((name for name, words in choices.items() if word in words), None)
        if kind is None or kind in values:
            allowed = "; ".join(f"one of {', '.join(words)}" for words in choices.values())
            near = did_you_mean(word, [known for words in choices.values() for known in words]) if kind is None else ""
            raise UserError(
                f"mode {text!r} has {word!r} where {allowed} is expected, at most one of each kind; "
                f"for example bfloat16,sdpa,compile{near}"
            )
        values[kind] = word
    return Mode(**values, backend=backend)
