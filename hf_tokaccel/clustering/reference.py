"""The method of the paper in plain PyTorch: what to read first. Nothing else in the package uses this module.

Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning" (Expedit, NeurIPS
2022). Section 3 inserts two layers without parameters into a trained vision transformer:

    centroids = cluster_tokens(tokens, (40, 40), (28, 28))      # token clustering layer
    refined = the_next_blocks(centroids)                         # as they were trained, on fewer tokens
    tokens = reconstruct_tokens(refined, tokens, centroids)      # token reconstruction layer

Every distance of every token to every cluster is formed, so time and memory grow with their product.
`hf_tokaccel.functional` computes the same in tiles, with more options; a test holds the two together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cluster_tokens(
    tokens: Tensor,
    grid: tuple[int, int],
    cluster_grid: tuple[int, int],
    iterations: int = 5,
    inverse_temperature: float = 0.02,
    window: int = 5,
) -> Tensor:
    """Centroids (B, h * w, C) of the tokens (B, H * W, C) of a grid: section 3, token clustering layer."""
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    centroids = F.adaptive_avg_pool2d(maps, cluster_grid).flatten(2).transpose(1, 2)
    candidates = near(grid, cluster_grid, window)
    for _ in range(iterations):
        scores = -inverse_temperature * squared_distances(tokens, centroids)
        weights = scores.masked_fill(~candidates, -torch.inf).softmax(dim=2).detach()  # of each token, over clusters
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-16)  # of each cluster, over tokens
        centroids = weights.transpose(1, 2) @ tokens
    return centroids


def reconstruct_tokens(
    refined: Tensor, tokens: Tensor, centroids: Tensor, neighbors: int = 20, inverse_temperature: float = 0.02
) -> Tensor:
    """Tokens (B, N, C') from refined clusters (B, M, C'): section 3, token reconstruction layer.

    The weights come from tokens (B, N, C) and centroids (B, M, C) as they were when the tokens were clustered.
    """
    distances = squared_distances(tokens, centroids)
    nearest = distances.amin(dim=2, keepdim=True)  # It cancels below, and keeps the exponential of far tokens from 0.
    weights = torch.exp(-inverse_temperature * (distances - nearest))
    last = weights.topk(min(neighbors, centroids.shape[1]), dim=2).values[..., -1:]
    weights = weights.where(weights >= last, 0)
    return F.normalize(weights, p=2, dim=2) @ refined  # As released: their length is 1, not their sum.


def squared_distances(tokens: Tensor, centroids: Tensor) -> Tensor:
    """(B, N, M) of tokens (B, N, C) and centroids (B, M, C)."""
    return (tokens[:, :, None] - centroids[:, None]).square().sum(dim=-1)


def near(grid: tuple[int, int], cluster_grid: tuple[int, int], window: int) -> Tensor:
    """Whether a cluster lies in the square of `window` x `window` clusters around a token's initial one; (N, M)."""
    h, w = cluster_grid
    numbers = torch.arange(h * w)
    initial = F.interpolate(numbers.view(1, 1, h, w).float(), grid, mode="nearest").long().flatten()[:, None]
    rows, cols = (initial // w - numbers // w).abs(), (initial % w - numbers % w).abs()
    return torch.maximum(rows, cols) <= window // 2
