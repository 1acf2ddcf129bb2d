"""Depth metrics, with the crops, caps and alignments of the benchmarks.

Errors follow the practice of NYUv2 and KITTI evaluation since Eigen et al. (2014): each image gives the mean over its
valid pixels (for RMSE the root of that mean), and a data set gives the mean over its images. What is kept is the sum
over images and their number, so any split of a data set over batches or processes adds up to the same result."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ...checks import UserError, did_you_mean

DEPTH_METRICS = ("abs_rel", "rmse", "log10", "delta1", "delta2", "delta3")
ALIGNMENTS = ("none", "scale", "scale_shift")
CROPS = ("none", "eigen", "garg")
_EIGEN_SIZE, _EIGEN_ROWS, _EIGEN_COLUMNS = (480, 640), (45, 471), (41, 601)
_GARG_ROWS, _GARG_COLUMNS = (0.40810811, 0.99189189), (0.03594771, 0.96405229)


def crop_mask(size: tuple[int, int], crop: str = "none") -> Tensor:
    """Pixels that a benchmark scores, as a boolean (H, W) map.

    `"eigen"` is the NYUv2 crop, rows 45 to 470 and columns 41 to 600 of 480x640; `"garg"` the KITTI crop of
    Garg et al. (2016), given as fractions of the image size.

    Raises:
        ValueError: An unknown crop, or the Eigen crop of a map that is not 480x640.
    """
    height, width = size
    if crop not in CROPS:
        near = did_you_mean(crop, CROPS)
        raise UserError(f"crop={crop!r} must be one of {', '.join(CROPS)}; for example crop='eigen' for NYUv2{near}")
    rows, columns = (0, height), (0, width)
    if crop == "eigen":
        if (height, width) != _EIGEN_SIZE:
            raise UserError(
                f"the Eigen crop is defined for depth of 480x640 pixels, not {height}x{width}; crop='none' takes any"
            )
        rows, columns = _EIGEN_ROWS, _EIGEN_COLUMNS
    elif crop == "garg":
        rows, columns = [int(f * height) for f in _GARG_ROWS], [int(f * width) for f in _GARG_COLUMNS]
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def align(prediction: Tensor, target: Tensor, alignment: str = "scale_shift") -> tuple[Tensor, Tensor]:
    """Scale and shift that bring a prediction closest to its target in least squares (MiDaS, Ranftl et al. 2022).

    Args:
        prediction: Values at the valid pixels, (N,).
        target: True values in the same space (depth or inverse depth), (N,).
        alignment: `"none"`, `"scale"` (no shift) or `"scale_shift"`.

    Returns:
        Scale and shift, float64 scalars: the aligned prediction is `scale * prediction + shift`.
    """
    p, t = prediction.double(), target.double()
    one, zero = p.new_ones(()), p.new_zeros(())
    if alignment == "none":
        return one, zero
    if alignment == "scale":
        return (p * t).sum() / p.square().sum().clamp(min=1e-300), zero
    if alignment != "scale_shift":
        near = did_you_mean(alignment, ALIGNMENTS)
        raise UserError(
            f"alignment={alignment!r} must be one of {', '.join(ALIGNMENTS)}; for example 'scale_shift'{near}"
        )
    # Centred sums: the plain normal equations lose half the digits when the spread is small against the mean.
    p_mean, t_mean = p.mean(), t.mean()
    spread = (p - p_mean).square().sum()
    scale = torch.where(spread > 0, ((p - p_mean) * (t - t_mean)).sum() / spread.clamp(min=1e-300), zero)
    return scale, t_mean - scale * p_mean


def depth_errors(prediction: Tensor, depth: Tensor) -> Tensor:
    """Errors of one image, in the order of `DEPTH_METRICS`.

    Args:
        prediction: Predicted depth at the valid pixels in metres, (N,), positive.
        depth: True depth there in metres, (N,).

    Returns:
        Float64 tensor (6,): AbsRel, RMSE in metres, mean |log10 ratio|, and the shares of pixels whose ratio
        max(p/d, d/p) is below 1.25, 1.25², 1.25³.
    """
    p, d = prediction.double(), depth.double()
    ratio = torch.maximum(p / d, d / p)
    deltas = [(ratio < 1.25**power).double().mean() for power in (1, 2, 3)]
    error = p - d
    return torch.stack([(error.abs() / d).mean(), error.square().mean().sqrt(), ratio.log10().mean(), *deltas])


@dataclass(frozen=True)
class DepthProtocol:
    """How a benchmark turns a predicted map into errors.

    Attributes:
        min_depth: Smallest true depth that counts, in metres; predictions are clamped to it.
        max_depth: Largest true depth that counts, in metres; predictions are clamped to it.
        crop: Scored part of the image, see `crop_mask`.
        alignment: What is fitted to the truth before errors are taken, see `align`.
        inverse: Predictions are inverse depth, as those of relative models; they are aligned in that space.
    """

    min_depth: float = 1e-3
    max_depth: float = 10.0
    crop: str = "none"
    alignment: str = "none"
    inverse: bool = False

    def __post_init__(self):
        if not 0 < self.min_depth < self.max_depth:
            raise UserError(
                f"depth range {self.min_depth}..{self.max_depth} m must be positive and rising, for example 1e-3..10"
            )
        if self.crop not in CROPS:
            near = did_you_mean(self.crop, CROPS)
            raise UserError(f"crop={self.crop!r} must be one of {', '.join(CROPS)}, for example 'none'{near}")
        if self.alignment not in ALIGNMENTS:
            near = did_you_mean(self.alignment, ALIGNMENTS)
            raise UserError(
                f"alignment={self.alignment!r} must be one of {', '.join(ALIGNMENTS)}, for example 'none'{near}"
            )

    def valid(self, depth: Tensor) -> Tensor:
        """Pixels of a true depth map (H, W) that count: measured, inside the caps and the crop."""
        inside = (depth > self.min_depth) & (depth < self.max_depth)
        return inside if self.crop == "none" else inside & crop_mask(tuple(depth.shape), self.crop).to(depth.device)

    def to_metres(self, prediction: Tensor, depth: Tensor) -> Tensor:
        """Predicted map (H, W) aligned to the true depth (H, W), in metres and clamped to the caps."""
        if self.alignment != "none":
            valid = self.valid(depth)
            target = depth[valid].double()
            scale, shift = align(prediction[valid], 1 / target if self.inverse else target, self.alignment)
            prediction = scale * prediction.double() + shift
        if self.inverse:
            prediction = 1 / prediction.clamp(1 / self.max_depth, 1 / self.min_depth)
        return prediction.clamp(self.min_depth, self.max_depth).to(depth.dtype)

    def sums(self, prediction: Tensor, depth: Tensor) -> Tensor:
        """Additive sums of one image: its errors, then 1; all zero where the image has no valid pixel.

        Args:
            prediction: Model output at the size of the true depth, (H, W).
            depth: True depth in metres, (H, W); zero or infinite where unknown.

        Returns:
            Float64 tensor (7,).
        """
        device = torch.device("cpu") if depth.device.type == "mps" else depth.device  # MPS has no float64
        prediction, depth = prediction.to(device).float(), depth.to(device).float()
        valid = self.valid(depth)
        if not valid.any():
            return torch.zeros(len(DEPTH_METRICS) + 1, dtype=torch.float64, device=device)
        errors = depth_errors(self.to_metres(prediction, depth)[valid], depth[valid])
        return torch.cat([errors, errors.new_ones(1)])

    def to_dict(self) -> dict:
        return asdict(self)


def metrics_from_sums(sums: Tensor) -> dict[str, float]:
    """Mean over images of each metric, from the sum of any number of `DepthProtocol.sums`."""
    *totals, count = sums.tolist()
    if count == 0:
        return dict.fromkeys(DEPTH_METRICS, math.nan)
    return {name: total / count for name, total in zip(DEPTH_METRICS, totals, strict=True)}
