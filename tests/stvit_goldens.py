"""Tensors of the released STViT code, and the images that it was given, which their seeds make again."""

from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parent / "goldens"
DETECTOR_SIZES = ((224, 112), (160, 200), (112, 176), (80, 112))


def golden(name):
    return load_file(GOLDENS / f"{name}.safetensors")


def _draw(seed, sizes, first, last):
    """Normal images of these sizes in turn, whose very first and last value are known."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(size, generator=generator) for size in sizes]
    ends = torch.stack([images[0].flatten()[0], images[-1].flatten()[-1]])
    # Fails where PyTorch's generator no longer draws what the goldens were made from.
    torch.testing.assert_close(ends, torch.tensor([first, last]))
    return images


def classifier_images():
    """Images (2, 3, 224, 224) of the classifiers' goldens."""
    return _draw(20230615, [(2, 3, 224, 224)], -1.04865, 1.50335)[0]


def detector_images():
    """Images (1, 3, H, W) of the detection backbone's goldens, by name."""
    images = _draw(20230616, [(1, 3, *size) for size in DETECTOR_SIZES], -2.57011, -0.192564)
    return {f"img_h{height}_w{width}": image for (height, width), image in zip(DETECTOR_SIZES, images, strict=True)}
