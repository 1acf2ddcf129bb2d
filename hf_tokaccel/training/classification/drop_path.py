"""Stochastic depth of any transformer from outside, since ViT has none in Transformers and Swin's is on one branch."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from ...checks import UserError
from .recipe import blocks


class DropPath:
    """Drops residual branches of whole images while a model is trained (Huang et al., ECCV 2016, section 3).

    Attention and MLP of every layer are branches; the rate grows linearly from 0 at the first layer to `rate` at the
    last. Hooks do it, so the saved model knows nothing of it; `remove` takes them off.

    Args:
        model: whose forward gets `pixel_values`.
        rate: of the last layer.

    Raises:
        ValueError: when the model has no layers of a form that is known here.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.batch, self.handles = 0, []
        layers = [layer for _, layer in blocks(model)]
        if rate and not layers:
            raise UserError(
                f"drop_path={rate} cannot be applied to {type(model).__name__}, which has no layers with `attention`, "
                "`mlp` and `layernorm_before`; use drop_path=0"
            )
        if not rate:
            return
        self.handles.append(model.register_forward_pre_hook(self._count, with_kwargs=True))
        for number, layer in enumerate(layers):
            self._hook(layer, rate * number / max(1, len(layers) - 1))

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _hook(self, layer: nn.Module, rate: float) -> None:
        shortcut = True

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            nonlocal shortcut
            shortcut = kwargs.get("shortcut", True)

        def attention(module: nn.Module, args: tuple, output: Any) -> Any:
            # Without a shortcut the attention is no branch: dropping it would leave nothing.
            if not shortcut:
                return output
            states, *rest = output if isinstance(output, tuple) else (output,)
            states = self._drop(states, rate, layer.training)
            return (states, *rest) if isinstance(output, tuple) else states

        def mlp(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return self._drop(output, rate, layer.training)

        self.handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
        self.handles.append(layer.attention.register_forward_hook(attention))
        self.handles.append(layer.mlp.register_forward_hook(mlp))

    def _count(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.batch = len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])

    def _drop(self, states: Tensor, rate: float, training: bool) -> Tensor:
        """States (B * windows, ...) where those of some images are zero, and the others grow to make up for it."""
        if not training or not rate:
            return states
        kept = stochastic_depth(torch.ones(self.batch, dtype=states.dtype, device=states.device), rate, "row")
        return states * kept.repeat_interleave(len(states) // self.batch).view(-1, *[1] * (states.ndim - 1))
