"""Confidence intervals over images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def bootstrap(counts: Tensor, resamples: int = 1000, seed: int = 0) -> Tensor:
    """Sums over images drawn with replacement, the same draws for every variant.

    Args:
        counts: Sums per image (variants, images, S).
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        Float64 tensor (variants, resamples, S).
    """
    number = counts.shape[1]
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples)
    return torch.from_numpy(drawn).double() @ counts


def interval(values: Tensor) -> tuple[float, float]:
    """2.5th and 97.5th percentile of resampled values (R,)."""
    low, high = torch.nanquantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
