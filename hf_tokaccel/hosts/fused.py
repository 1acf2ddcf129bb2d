"""Attention whose kernel adds the bias of sizes itself, inside of graphs that are compiled for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ..clustering.constants import exporting

# Pairs of queries and keys below which SDPA with a mask is faster; between two measured sizes on an H200.
FEW_PAIRS = 1_200_000
# PyTorch 2.14 forgets what a pass has noted in objects where it meets `flex_attention`; 2.12 and 2.13 were not tried.
_FORGETS = torch.__version__ >= "2.12" and torch.__version__ < "2.15"


def fuses(query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a graph does better with `attend_fused` than with a mask, for queries (B, heads, L, d).

    SDPA's kernels read a mask of numbers once for each query, and take up to three times as long with it.
    """
    if not torch.compiler.is_compiling() or exporting() or query.device.type != "cuda":
        return False
    learns = torch.is_grad_enabled() or kwargs.get("dropout")
    half = query.dtype in (torch.bfloat16, torch.float16)
    pairs = query.shape[0] * query.shape[2] ** 2
    return not _FORGETS and not learns and half and query.shape[-1] >= 16 and pairs > FEW_PAIRS


def attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """(B, L, heads, d) from queries (B, heads, L, d) and keys and values, which may have fewer heads.

    Args:
        query: as they come from the projections.
        key: likewise.
        value: likewise.
        bias: (B, 1, 1, keys) of the logits.
        scale: of the products; None is 1 / sqrt(d).
    """

    def weigh(score: Tensor, image: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[image, 0, 0, column]

    few = key.shape[1] != query.shape[1]
    attended = flex_attention(query, key, value, score_mod=weigh, scale=scale, enable_gqa=few)
    return attended.transpose(1, 2).contiguous()
