"""Rivals of adaptive clusters that differ in one thing: which token is of which region.

Random regions say what it is worth that regions look at the image at all, exact agglomeration how much the few rounds
of matching lose to the best that is known. Both go through the same attention and reconstruction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..auto import accelerate
from ..checks import UserError
from ..clustering.adaptive import TokenRegions
from ..hosts.clusters import AdaptiveClusters
from ..hosts.modeling import AcceleratedModel
from ..hosts.track import TokenTrack
from ..settings.clustering import TokenClusteringConfig


def random_regions(keys: Tensor, count: int, before: TokenRegions | None = None) -> TokenRegions:
    """As many regions as asked for, of tokens (B, N, K) drawn without looking at them; the same for every image.

    Args:
        keys: only their shape counts.
        count: regions M.
        before: regions to go on from.
    """
    number = keys.shape[1] if before is None else before.sizes.shape[1]
    # Every region keeps one of those before, so that none is empty.
    draw = torch.Generator().manual_seed(0)
    own = torch.randint(count, (number,), generator=draw)
    own[torch.randperm(number, generator=draw)[:count]] = torch.arange(count)
    return _regions(own.to(keys.device).expand(len(keys), -1), count, before)


def ward_regions(keys: Tensor, count: int, before: TokenRegions | None = None) -> TokenRegions:
    """Exact agglomeration by Ward's cost over the whole image (scikit-learn), on the CPU; begins with single tokens.

    Args:
        keys: (B, N, K).
        count: regions M.
        before: not used: a tree over all tokens is at least as good.
    """
    from sklearn.cluster import AgglomerativeClustering

    found = [
        torch.from_numpy(
            AgglomerativeClustering(n_clusters=count, linkage="ward").fit(x.float().cpu().numpy()).labels_
        )
        for x in keys
    ]
    return _regions(torch.stack(found).long().to(keys.device), count, None)


def _regions(own: Tensor, count: int, before: TokenRegions | None) -> TokenRegions:
    """Regions of tokens from where each (B, m) of those before goes."""
    rows = own.contiguous() if before is None else own.gather(1, before.rows)
    sizes = rows.new_zeros(len(rows), count).scatter_add(1, rows, torch.ones_like(rows))
    return TokenRegions(rows, sizes)


class _RandomClusters(AdaptiveClusters):
    def partition(self, keys: Tensor, grid: Any, count: int, before: AdaptiveClusters | None) -> TokenRegions:
        return random_regions(keys, count, None if before is None else before.regions)


class _WardClusters(AdaptiveClusters):
    def partition(self, keys: Tensor, grid: Any, count: int, before: AdaptiveClusters | None) -> TokenRegions:
        return ward_regions(keys, count)


class _RandomTrack(TokenTrack):
    adaptive_clusters = _RandomClusters


class _WardTrack(TokenTrack):
    adaptive_clusters = _WardClusters


TRACKS: dict[str, type[TokenTrack]] = {"random": _RandomTrack, "ward": _WardTrack}


def choose_regions(model: PreTrainedModel, setting: TokenClusteringConfig, kind: str) -> PreTrainedModel:
    """An accelerated model whose adaptive clusters are chosen otherwise; for comparison only.

    Args:
        model: a loaded model, native or accelerated.
        setting: with adaptive clusters.
        kind: `"random"` or `"ward"`.

    Raises:
        ValueError: the setting has a grid, the kind is unknown, or the model cannot be accelerated so.
    """
    if kind not in TRACKS or not setting.adaptive:
        raise UserError(
            f"kind={kind!r}, clusters={setting.clusters!r} is not valid: kind must be one of {', '.join(TRACKS)} and "
            "clusters must be set, for example kind='random', TokenClusteringConfig(cluster_after=2, clusters=0.5)."
        )
    chosen = accelerate(model, setting)
    for module in chosen.modules():
        if isinstance(module, AcceleratedModel) and getattr(module, "accel", None) is not None:
            module.accel_make_track = TRACKS[kind]
    return chosen
