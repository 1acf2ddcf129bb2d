"""Counter-based random numbers: every draw is a hash of (split, seed, scene index, counter).

A hash rather than a generator makes a scene independent of the batch it is drawn in and of the device, costs a few
integer operations for a whole batch, and leaves PyTorch's global generators alone.
"""

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9


def mix32(x: Tensor) -> Tensor:
    """Bijectively scramble the low 32 bits of an int64 tensor (the products wrap, which leaves the low bits exact)."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


class Draws:
    """The uniform numbers of a batch of scenes, handed out in program order.

    Attributes:
        keys: (B, 2) int64. The second word depends on split and seed only, and is a bijection of the split for a given
            seed, so that scenes of different splits can never coincide.
    """

    def __init__(self, indices: Tensor, split: str, seed: int):
        split_id = SPLITS.index(split) + 1
        first = mix32(mix32(indices) + split_id * _GOLDEN)
        second = mix32(mix32(torch.full_like(indices, seed)) + split_id * _GOLDEN)
        self.keys = torch.stack([first, second], dim=1)
        self._counter = 0

    def uniform(self, low: float = 0.0, high: float = 1.0, count: int | None = None) -> Tensor:
        """Return (B,) numbers in [low, high), or (B, count) when a count is given."""
        slots = torch.arange(self._counter, self._counter + (count or 1)) * _GOLDEN
        self._counter += count or 1
        bits = mix32(mix32(self.keys[:, :1] ^ (slots & _MASK)) + self.keys[:, 1:])
        values = low + (high - low) * ((bits >> 8).to(torch.float32) * 2.0**-24)
        return values if count else values[:, 0]

    def flag(self, probability: float) -> Tensor:
        """Return (B,) booleans, true with the given probability."""
        return self.uniform() < probability

    def choice(self, count: int) -> Tensor:
        """Return (B,) int64 numbers below count."""
        return (self.uniform() * count).long()


def pixel_noise(keys: Tensor, channels: int, pixels: int) -> Tensor:
    """Return (B, channels, pixels) nearly Gaussian numbers of mean 0 and standard deviation 1."""
    counters = torch.arange(channels * pixels, device=keys.device) * _GOLDEN
    bits = mix32(mix32((keys[:, :1] ^ (counters & _MASK)) + 0x51ED27) + keys[:, 1:])
    total = (bits & 0xFF) + ((bits >> 8) & 0xFF) + ((bits >> 16) & 0xFF) + (bits >> 24)
    # The sum of four bytes has mean 510 and variance 4 * (256**2 - 1) / 12.
    return ((total - 510).to(torch.float32) / 147.8).view(keys.shape[0], channels, pixels)
