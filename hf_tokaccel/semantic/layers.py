"""The layer that all semantic tokens pass: pre-norm attention, to themselves or to other tokens (section 3.2)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.swin.modeling_swin import SwinDropPath
from transformers.models.vit.modeling_vit import eager_attention_forward

from ..upstream import attention_of

# Takes a map (B, N, C) to its windows (B', Q, C), and back.
Windows = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _same(states: Tensor) -> Tensor:
    return states


class SemanticAttention(nn.Module):
    """Attention of queries (B, Q, C) to projected keys and values (B, K, C), under the names of ViT and Swin."""

    def __init__(self, config: PreTrainedConfig, size: int, heads: int) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = heads
        self.scaling = (size // heads) ** -0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(size, size)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor | None = None,
        windows: Windows | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attended values (B, Q, C), and the weights (B, heads, Q, K) where the implementation tells them.

        With `windows`, queries and the result are those of a map (B, N, C), and attention runs in its windows.
        """
        split, join = windows or (_same, _same)
        query, key, value = (
            states.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for states in (split(self.q_proj(queries)), keys, values)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention_of(self.config), eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(join(output.flatten(2))), weights


class SemanticMLP(nn.Module):
    def __init__(self, config: PreTrainedConfig, size: int, inner: int) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(states)))


def branch_dropout(dropout: float, drop_path: float) -> nn.Module:
    """What a branch of a layer passes before it is added: dropout, and stochastic depth of each row of the batch."""
    return nn.Sequential(nn.Dropout(dropout), SwinDropPath(drop_path)) if drop_path else nn.Dropout(dropout)


class SemanticLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP with optional LayerScale; its parameters are those of a ViT or Swin block.

    Queries and context share the first LayerNorm. Keys and values are projected once per token, before windows are
    gathered from them.

    Args:
        config: of the host, for attention implementation, activation and dropout.
        size: channels C.
        heads: attention heads.
        inner: channels of the MLP.
        eps: of the LayerNorms.
        layer_scale: initial value of the LayerScale; 0 for none.
        drop_path: probability that training skips a branch, for each row of the batch.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        size: int,
        heads: int,
        inner: int,
        *,
        eps: float,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = SemanticAttention(config, size, heads)
        self.layernorm_before = nn.LayerNorm(size, eps=eps)
        self.layernorm_after = nn.LayerNorm(size, eps=eps)
        self.mlp = SemanticMLP(config, size, inner)
        self.dropout = branch_dropout(config.hidden_dropout_prob, drop_path)
        self.layer_scale = layer_scale
        self.layer_scale_1 = nn.Parameter(torch.full((size,), float(layer_scale))) if layer_scale else None
        self.layer_scale_2 = nn.Parameter(torch.full((size,), float(layer_scale))) if layer_scale else None

    def forward(
        self,
        queries: Tensor,
        context: Tensor | None = None,
        own: Tensor | None = None,
        *,
        gather: Callable[[Tensor], Tensor] | None = None,
        windows: Windows | None = None,
        attention_mask: Tensor | None = None,
        shortcut: bool = True,
        with_weights: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """New states (B, Q, C) of the queries.

        Args:
            queries: states (B, Q, C).
            context: tokens (B', N, C) that keys and values come from; None for the queries themselves.
            own: further tokens (B, M, C) that each row of queries reads, before the others. Like the context by
                position, since reentrant gradient checkpointing sees no gradients through keywords.
            gather: takes keys or values (B', N, C) of the context to those (B, K, C) that each row of queries reads;
                None where these are the same.
            windows: of a map of queries, where each window attends on its own: only what lies in the map is projected
                and passes the MLP.
            attention_mask: added to the logits, broadcast to (B, heads, Q, K).
            shortcut: whether what is attended is added to the queries.
            with_weights: whether to return attention weights (B, heads, Q, K) too; None where the implementation does
                not tell them.
        """
        normed = self.layernorm_before(queries)
        source = normed if context is None else self.layernorm_before(context)
        keys, values = self.attention.k_proj(source), self.attention.v_proj(source)
        if gather is not None:
            keys, values = gather(keys), gather(values)
        if own is not None:
            others = self.layernorm_before(own)
            keys = torch.cat((self.attention.k_proj(others), keys), dim=1)
            values = torch.cat((self.attention.v_proj(others), values), dim=1)
        attended, weights = self.attention(normed, keys, values, attention_mask, windows, **kwargs)
        attended = self._scaled(attended, self.layer_scale_1)
        # Without a shortcut nothing would be left of what training drops.
        states = queries + self.dropout(attended) if shortcut else attended
        states = states + self._scaled(self.dropout(self.mlp(self.layernorm_after(states))), self.layer_scale_2)
        return (states, weights) if with_weights else states

    @staticmethod
    def _scaled(states: Tensor, scale: Tensor | None) -> Tensor:
        return states if scale is None else states * scale


def initialize_layer_scale(module: nn.Module) -> None:
    """Initial values of a layer's LayerScale, for `_init_weights` of a model."""
    if isinstance(module, SemanticLayer) and module.layer_scale_1 is not None:
        init.constant_(module.layer_scale_1, module.layer_scale)
        init.constant_(module.layer_scale_2, module.layer_scale)
