"""Token clustering and token reconstruction as pure functions on tensors.

The method of "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning" (Expedit): the token
clustering layer of section 3 and the token reconstruction layer that undoes it. No module, no config, no state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenClusters(NamedTuple):
    centroids: Tensor
    key_centroids: Tensor


class ReconstructionPlan(NamedTuple):
    indices: Tensor
    weights: Tensor
    tokens: Tensor | None = None
    centroids: Tensor | None = None


def _labels(size: int, clusters: int) -> list[int]:
    ratio = torch.tensor(clusters, dtype=torch.float32) / size
    positions = torch.floor(torch.arange(size, dtype=torch.float32) * ratio)
    return positions.clamp(max=clusters - 1).long().tolist()


def _near(grid, cluster_grid, window, device) -> Tensor:
    rows, cols = (
        (torch.arange(c)[None] - torch.tensor(_labels(s, c))[:, None]).abs() <= window // 2
        for s, c in zip(grid, cluster_grid, strict=True)
    )
    near = rows[:, None, :, None] & cols[None, :, None, :]
    return near.reshape(grid[0] * grid[1], -1).to(device)


def _distances(x: Tensor, s: Tensor) -> Tensor:
    return (x.square().sum(-1)[..., None] + s.square().sum(-1)[:, None] - 2 * x @ s.transpose(1, 2)).clamp(min=0)


def _pool(x: Tensor, grid, cluster_grid) -> Tensor:
    maps = x.transpose(1, 2).unflatten(2, tuple(grid))
    return F.adaptive_avg_pool2d(maps, tuple(cluster_grid)).flatten(2).transpose(1, 2)


def _scale(temperature, distances: Tensor):
    if temperature == "auto":
        return 1 / distances.detach().amin(-1).mean(-1).clamp(min=1e-12)[:, None, None]
    return temperature


def cluster_tokens(
    tokens: Tensor,
    grid: tuple[int, int],
    cluster_grid: tuple[int, int],
    *,
    iterations: int = 5,
    inverse_temperature: float | str = 0.02,
    window: int = 5,
    keys: Tensor | None = None,
) -> TokenClusters:
    """Cluster the tokens of a grid into a smaller grid (draft: dense, correct)."""
    if window % 2 == 0 or window < 1:
        raise ValueError(f"window={window} must be a positive odd number, for example 5")
    if tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} do not fill grid={grid}")
    with torch.autocast(tokens.device.type, enabled=False):
        x = tokens.float() if tokens.dtype != torch.float64 else tokens
        k = x if keys is None else keys.to(x.dtype)
        s, ks = _pool(x, grid, cluster_grid), _pool(k, grid, cluster_grid)
        near = _near(grid, cluster_grid, window, x.device)
        scale = None
        for _ in range(iterations):
            with torch.no_grad():
                d = _distances(k, ks)
                scale = _scale(inverse_temperature, d.masked_fill(~near, torch.inf)) if scale is None else scale
                a = (-scale * d).masked_fill(~near, -torch.inf).softmax(-1)
                a = a / a.sum(1, keepdim=True).clamp(min=1e-16)
            s, ks = a.transpose(1, 2) @ x, a.transpose(1, 2) @ k
    s = s.to(tokens.dtype)
    return TokenClusters(s, s if keys is None else ks.to(keys.dtype))


def plan_reconstruction(
    tokens: Tensor,
    centroids: Tensor,
    *,
    neighbors: int = 20,
    inverse_temperature: float | str = 0.02,
    normalization: str = "l2",
    expansion: str = "soft",
    keys: Tensor | None = None,
    key_centroids: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    cluster_grid: tuple[int, int] | None = None,
    window: int | None = None,
) -> ReconstructionPlan:
    """Find for every token the clusters that it is rebuilt from (draft: dense, correct)."""
    if neighbors == 0:
        raise ValueError("neighbors=0 must be positive or -1 (all), for example 20")
    with torch.autocast(tokens.device.type, enabled=False):
        x = (tokens if keys is None else keys).float()
        s = (centroids if key_centroids is None else key_centroids).float()
        d = _distances(x, s)
        if window is not None:
            d = d.masked_fill(~_near(grid, cluster_grid, window, d.device), torch.inf)
        if expansion == "nearest":
            index = d.argmin(-1, keepdim=True)
            return ReconstructionPlan(index, torch.ones_like(index, dtype=x.dtype))
        nearest = d.amin(-1, keepdim=True)
        w = torch.exp(-_scale(inverse_temperature, d) * (d - nearest))
        m = s.shape[1]
        if 0 < neighbors < m:
            w = w.masked_fill(w < w.topk(neighbors)[0][..., -1:], 0)
        p = 1 if normalization == "l1" or expansion == "delta" else 2
        w = F.normalize(w, p=p, dim=-1)
        index = torch.arange(m, device=w.device).expand_as(w)
    if expansion == "delta":
        return ReconstructionPlan(index, w, tokens, centroids)
    return ReconstructionPlan(index, w)


def reconstruct_tokens(refined: Tensor, plan: ReconstructionPlan) -> Tensor:
    """Rebuild full-resolution tokens from refined clusters (draft: dense, correct)."""
    with torch.autocast(refined.device.type, enabled=False):
        z = refined.float()
        if plan.tokens is not None:
            z = z - plan.centroids.float()
        if plan.indices.shape[-1] == 1:
            out = torch.take_along_dim(z, plan.indices, 1) * plan.weights
        else:
            out = plan.weights.float() @ z
        if plan.tokens is not None:
            out = plan.tokens.float() + out
    return out.to(refined.dtype)
