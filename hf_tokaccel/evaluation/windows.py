"""Sliding-window inference: a model sees square crops of an image, and logits are averaged where they overlap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import UserError


@dataclass(frozen=True)
class Windows:
    """Square crops that cover an image.

    Attributes:
        crop: Side of a crop in pixels.
        stride: Step between crops in pixels.
    """

    crop: int
    stride: int

    def __post_init__(self):
        if self.crop < 1:
            raise UserError(f"crop={self.crop} must be at least 1 pixel, for example crop=512")
        if not 1 <= self.stride <= self.crop:
            raise UserError(
                f"stride={self.stride} must be from 1 to the crop of {self.crop} pixels, since larger steps leave "
                f"gaps; for example stride={max(1, self.crop * 2 // 3)}"
            )

    def check_patch(self, patch: int) -> None:
        """ValueError where a crop is no whole number of patches of that many pixels per side."""
        if self.crop % patch:
            nearest = max(1, round(self.crop / patch)) * patch
            raise UserError(f"crop={self.crop} must be a multiple of the patch size {patch}, for example {nearest}")

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size of an image that crops can cover: enlarged in proportion where a side is shorter than the crop."""
        shorter = min(size)
        if shorter >= self.crop:
            return tuple(size)
        return tuple(max(round(side * self.crop / shorter), self.crop) for side in size)

    def starts(self, side: int) -> list[int]:
        """First pixels of the crops along a side: every stride, the last flush with the end."""
        return [*range(0, side - self.crop, self.stride), side - self.crop]

    def corners(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Top and left of every crop of an image of (height, width)."""
        return [(top, left) for top in self.starts(size[0]) for left in self.starts(size[1])]

    def crops(self, images: Tensor) -> Tensor:
        """Crops (n, B, 3, crop, crop) of images (B, 3, H, W), in the order of `corners`."""
        corners = self.corners(tuple(images.shape[-2:]))
        return torch.stack([images[..., y : y + self.crop, x : x + self.crop] for y, x in corners])

    def merge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Mean logits of all crops that cover a pixel.

        Args:
            logits: Of the crops of one image, (n, classes, h, w) of any size; they are resized to the crop (bilinear)
                before they are averaged.
            size: Height and width of the image, both at least the crop.

        Returns:
            Float32 logits (classes, height, width).
        """
        total = logits.new_zeros(logits.shape[1], *size, dtype=torch.float32)
        count = logits.new_zeros(size, dtype=torch.float32)
        for (y, x), crop in zip(self.corners(size), logits, strict=True):
            place = slice(y, y + self.crop), slice(x, x + self.crop)
            total[:, *place] += F.interpolate(crop[None].float(), (self.crop, self.crop), mode="bilinear")[0]
            count[place] += 1
        return total / count
