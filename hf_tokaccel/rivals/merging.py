"""Token merging with unmerge: a rival of token clustering, behind the same interface, for measurements.

Our own implementation of the description in "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023), section 3:
bipartite soft matching, and averages weighted by size; for dense output merged tokens are copied back, as the papers
that compare on dense prediction do. It differs from the paper's in two ways, both of which follow from running between
unchanged blocks: tokens merge before a block, compared after its first LayerNorm, instead of inside of it by attention
keys; and attention is not biased by size, which keeps the fused kernels.

Every shape is static given the number of tokens, and no image of a batch sees another.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..auto import accelerate
from ..checks import UserError
from ..clustering.functional import ReconstructionPlan, _autocast_off, _exact
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel
from ..hosts.track import TokenTrack
from ..settings.clustering import TokenClusteringConfig


class MergedTokens(NamedTuple):
    """Result of `merge_tokens`."""

    tokens: Tensor
    """(B, N - r, C) in the order of the tokens that are left, in the dtype of the tokens."""
    sizes: Tensor
    """(B, N - r) float32: how many tokens each one stands for."""
    rows: Tensor
    """(B, N) int64: the row of `tokens` that each token went into."""


def merge_tokens(
    tokens: Tensor, count: int, *, keys: Tensor | None = None, sizes: Tensor | None = None
) -> MergedTokens:
    """Merge the `count` most similar pairs of tokens: ToMe, section 3, bipartite soft matching.

    Tokens at even places each propose to the most similar token at an odd place, by the cosine of their keys; the
    `count` best proposals are accepted, and those tokens are averaged into the one that they proposed to.

    Args:
        tokens: (B, N, C) without class tokens.
        count: r, tokens fewer afterwards; at most N // 2. 0 changes nothing.
        keys: (B, N, K) compared in place of the tokens.
        sizes: (B, N) what tokens stand for already, as an earlier call returned it; None is one each.

    Raises:
        ValueError: `count` is negative or more than half of the tokens.
    """
    batch, length, channels = tokens.shape
    if not 0 <= count <= length // 2:
        raise UserError(
            f"count={count} is not valid: one step merges between 0 and half of the {length} tokens, for example "
            f"count={length // 8}."
        )
    device = tokens.device
    sizes = torch.ones(batch, length, device=device) if sizes is None else sizes
    own = torch.arange(length, device=device).expand(batch, -1)
    if count == 0:
        return MergedTokens(tokens, sizes, own)
    with _autocast_off(tokens):
        exact = _exact(tokens)
        unit = F.normalize(_exact(tokens if keys is None else keys).detach(), dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
        accepted = best.topk(count, sorted=False)[1]
        sources = 2 * accepted
        # The rows that stay keep their order, so that even and odd places go on alternating over the image.
        stays = torch.ones(batch, length, device=device, dtype=torch.long).scatter(1, sources, 0)
        rows = stays.cumsum(1) - 1
        rows = rows.scatter(1, sources, rows.gather(1, 2 * partner.gather(1, accepted) + 1))
        index = rows[..., None].expand(-1, -1, channels)
        total = exact.new_zeros(batch, length - count, channels).scatter_add(1, index, exact * sizes[..., None])
        size = sizes.new_zeros(batch, length - count).scatter_add(1, rows, sizes)
        return MergedTokens((total / size[..., None]).to(tokens.dtype), size, rows)


def unmerge_tokens(merged: Tensor, rows: Tensor) -> Tensor:
    """(B, N, C) from what became of merged tokens, (B, M, C): every token is a copy of the one it went into.

    Args:
        merged: (B, M, C).
        rows: (B, N) as `MergedTokens.rows`; those of several steps are composed with `first.rows` as
            `second.rows.gather(1, first.rows)`.
    """
    return merged.gather(1, rows[..., None].expand(-1, -1, merged.shape[-1]))


_NEEDS_GRID = (
    "token merging leaves no grid of tokens, which the windows, relative positions or video slices of this model "
    "need; compare with grid pooling or a lower resolution instead"
)


class MergeTrack(TokenTrack):
    """A track that merges `per_layer` tokens before every block, and copies them back where somebody reads them."""

    def __init__(self, *args: Any, per_layer: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.layout) is not TokenLayout:
            raise UserError(_NEEDS_GRID)
        self.per_layer = per_layer
        self.sizes: Tensor | None = None
        self.rows: Tensor | None = None

    def before_layer(self, index: int, states: Tensor, norm: nn.Module | None = None) -> Tensor:
        if index == 0:
            self._record(0, states)
        return self._cluster(states, norm) if self.per_layer else states

    def _cluster(self, states: Tensor, norm: nn.Module) -> Tensor:
        prefix, tokens = self.layout.split(states, self.layout.grid)
        # A step merges at most half, however many the schedule asks for.
        count = min(self.per_layer, tokens.shape[1] // 2)
        merged = merge_tokens(tokens, count, keys=norm(tokens), sizes=self.sizes)
        self.rows = merged.rows if self.rows is None else merged.rows.gather(1, self.rows)
        self.sizes, self.clustered = merged.sizes, True
        return self.layout.join(prefix, merged.tokens, self.layout.grid)

    def _plan_for(self, refined: Tensor) -> ReconstructionPlan:
        indices = self.rows[..., None].to(refined.device)
        return ReconstructionPlan(indices, torch.ones(indices.shape, device=indices.device))


# Rebuilding copies, wherever the family rebuilds; what is merged does not depend on it.
_COPIES = TokenClusteringConfig(cluster_after=0, cluster_grid=(1, 1), expansion="nearest")


def merge_in_layers(model: PreTrainedModel, per_layer: int) -> PreTrainedModel:
    """A model that merges tokens before every block, with the parameters of `model` (shared, not copied).

    It runs, compiles and exports like an accelerated model, but is for comparison only and cannot be saved.

    Args:
        model: a loaded model, native or accelerated.
        per_layer: r, tokens fewer after each block; the class token and its like never merge. Where fewer than twice
            as many are left, half of those merge.

    Raises:
        ValueError: the model cannot be accelerated, or its blocks need a grid of tokens; some say so when they run.
    """
    if per_layer < 0:
        raise UserError(f"per_layer={per_layer} is not valid: it must be 0 or more, for example per_layer=32.")
    merged = accelerate(model, _COPIES)
    entered = [module for module in merged.modules() if getattr(module, "accel", None) is not None]
    for module in entered:
        inputs, positions = (getattr(type(module), name, None) for name in ("accel_block_inputs", "accel_positions"))
        own = inputs is not AcceleratedModel.accel_block_inputs or positions is not AcceleratedModel.accel_positions
        if own or module.accel_passes_inputs:
            raise UserError(_NEEDS_GRID)
        module.accel_make_track = _Tracks(per_layer)
    merged.save_pretrained = _refuse_saving
    return merged


class _Tracks:
    """Makes the track of each pass; a class, so that models with it can be copied and pickled."""

    def __init__(self, per_layer: int) -> None:
        self.per_layer = per_layer

    def __call__(self, *args: Any, **kwargs: Any) -> MergeTrack:
        return MergeTrack(*args, per_layer=self.per_layer, **kwargs)


def _refuse_saving(*args: Any, **kwargs: Any) -> None:
    raise UserError(
        "a model with merged tokens is for comparison only and cannot be saved: save the model that it was made of, "
        "or one of hf_tokaccel.accelerate(model, accel)."
    )
