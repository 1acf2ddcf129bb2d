"""Token Merging, a rival of token clustering behind the same interface, for measurements.

Our own implementation of the description in "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023), section 3:
bipartite soft matching of attention keys, averages weighted by size, and attention proportional to size. For dense
output merged tokens are copied back, as the papers that compare on dense prediction do; or the change of each is added
to the tokens that went into it, which is ours (`"delta"`).

The paper merges inside of a block, between attention and MLP. Here tokens merge before the block, by the keys that its
attention has of them, so that the first block is spared too. On a real checkpoint that loses less at equal FLOPs: see
docs/method_search.md.

Every shape is static given the number of tokens, and no image of a batch sees another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..auto import accelerate, accelerate_config
from ..checks import UserError, check_choice
from ..clustering.adaptive import EXPANSIONS, TokenRegions
from ..clustering.functional import _autocast_off, _exact
from ..hosts.clusters import AdaptiveClusters
from ..hosts.config import family_of
from ..hosts.layout import TokenLayout
from ..hosts.modeling import AcceleratedModel
from ..hosts.sizes import SizedConfig
from ..hosts.track import TokenTrack
from ..quantization import is_quantized
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


class KeyMeans:
    """The keys of a block's attention, their mean over heads, from what its LayerNorm gives.

    The mean of the projections is the projection by the mean, so it costs one head's product.

    Raises:
        ValueError: the attention of the block has no key projection of its own.
    """

    def __init__(self, block: nn.Module) -> None:
        for module in block.modules():
            config = vars(module).get("config")
            if isinstance(config, SizedConfig):
                self.projection = getattr(module, "k_proj", None) or getattr(module, "key", None)
                self.heads = config.num_attention_heads
                if self.projection is not None:
                    self.quantized = is_quantized(self.projection)
                    return
        raise UserError(
            f"token merging compares attention keys, and the attention of {type(block).__name__} has no projection "
            "named k_proj or key; compare with grid pooling or a lower resolution instead"
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, N, d) of normalized tokens (B, N, C)."""
        weight, bias = self.projection.weight, self.projection.bias
        if callable(weight):  # dynamic int8 of PyTorch
            weight, bias = weight(), bias()
        if self.quantized:
            weight = weight.dequantize()
        weight, bias = (x if x is None else x.unflatten(0, (self.heads, -1)).mean(0) for x in (weight, bias))
        return F.linear(tokens, weight, bias)


class MergedClusters(AdaptiveClusters):
    """What merging has left so far.

    Args:
        accel: says how tokens are rebuilt.
        merged: this step.
        tokens: (B, N, C) all tokens before it, for `"delta"`.
        before: the step before.
    """

    def __init__(
        self, accel: TokenClusteringConfig, merged: MergedTokens, tokens: Tensor, before: MergedClusters | None
    ) -> None:
        self.accel, self.tokens = accel, tokens
        self.shape = (1, merged.tokens.shape[1])
        rows = merged.rows if before is None else merged.rows.gather(1, before.regions.rows)
        self.regions = TokenRegions(rows, merged.sizes)
        self.means = self.centroids = merged.tokens


class MergeTrack(TokenTrack):
    """A track that merges `per_layer` tokens before every block, and rebuilds them where somebody reads them."""

    def __init__(self, *args: Any, per_layer: int, keys: dict[int, KeyMeans], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.layout) is not TokenLayout:
            raise UserError(_NEEDS_GRID)
        self.per_layer = per_layer
        self.keys = keys

    def before_layer(self, index: int, states: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        if index == 0:
            self._record(0, states)
        if not self.per_layer:
            return states
        whole = self.full(states) if self.accel.expansion == "delta" else states
        return self._cluster(states, normalize, index, whole)

    def _cluster(self, states: Tensor, normalize: Callable[[Tensor], Tensor], step: int, whole: Tensor) -> Tensor:
        layout, before = self.layout, self.clusters
        prefix, tokens = layout.split(states, layout.grid if before is None else before.shape)
        # A step merges at most half, however many the schedule asks for.
        count = min(self.per_layer, tokens.shape[1] // 2)
        sizes = None if before is None else before.sizes()
        merged = merge_tokens(tokens, count, keys=self.keys[step](normalize(tokens)), sizes=sizes)
        self.clusters = MergedClusters(self.accel, merged, layout.split(whole, layout.grid)[1], before)
        self.clustered = True
        self.memo.clear()
        self.bias = self._size_bias(prefix, merged.sizes)
        return layout.join(prefix, merged.tokens, self.clusters.shape)


def merge_in_layers(model: PreTrainedModel, per_layer: int, expansion: str = "nearest") -> PreTrainedModel:
    """A model that merges tokens before every block, with the parameters of `model` (shared, not copied).

    It runs, compiles and exports like an accelerated model, but is for comparison only and cannot be saved.

    Args:
        model: a loaded model, native or accelerated.
        per_layer: r, tokens fewer after each block; the class token and its like never merge. Where fewer than twice
            as many are left, half of those merge.
        expansion: `"nearest"` copies merged tokens back, `"delta"` adds their change to the tokens as they were.

    Raises:
        ValueError: the model cannot be accelerated, or its blocks need a grid of tokens; some say so when they run.
    """
    if per_layer < 0:
        raise UserError(f"per_layer={per_layer} is not valid: it must be 0 or more, for example per_layer=32.")
    check_choice("expansion", expansion, EXPANSIONS, "delta")
    host = accelerate_config(model.config, None).accel_host()
    if not family_of(host).accel_adaptive(host):
        raise UserError(_NEEDS_GRID)
    # What is merged does not depend on the grid; it is there since a setting needs one.
    setting = TokenClusteringConfig(cluster_after=0, cluster_grid=(1, 1), expansion=expansion, size_attention=True)
    merged = accelerate(model, setting)
    hosts = [m for m in merged.modules() if isinstance(m, AcceleratedModel) and m.accel is not None]
    if any(_has_places(type(host)) for host in hosts):
        raise UserError(_NEEDS_GRID)
    blocks = [block for host in hosts if host.accel_layers for block in host.get_submodule(host.accel_layers)]
    keys = {block.accel_index: KeyMeans(block) for block in blocks}
    for host in hosts:
        host.accel_make_track = _Tracks(per_layer, keys)
    merged.save_pretrained = _refuse_saving
    return merged


def _has_places(cls: type[AcceleratedModel]) -> bool:
    """Whether blocks need to know where each token is."""
    names = ("accel_block_inputs", "accel_positions", "accel_passes_inputs")
    return any(getattr(cls, name) != getattr(AcceleratedModel, name) for name in names)


class _Tracks:
    """Makes the track of each pass; a class, so that models with it can be copied and pickled."""

    def __init__(self, per_layer: int, keys: dict[int, KeyMeans]) -> None:
        self.per_layer, self.keys = per_layer, keys

    def __call__(self, *args: Any, **kwargs: Any) -> MergeTrack:
        return MergeTrack(*args, per_layer=self.per_layer, keys=self.keys, **kwargs)


def _refuse_saving(*args: Any, **kwargs: Any) -> None:
    raise UserError(
        "a model with merged tokens is for comparison only and cannot be saved: save the model that it was made of, "
        "or one of hf_tokaccel.accelerate(model, accel)."
    )
