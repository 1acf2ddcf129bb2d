"""Flagship architectures at their real sizes, with random weights: speed and cost need no checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    SamVisionConfig,
    SamVisionModel,
    SwinConfig,
)

from ..checks import UserError, did_you_mean
from ..models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@dataclass(frozen=True)
class Architecture:
    """A named model.

    Attributes:
        like: the checkpoint with this architecture.
        size: (height, width) of its input in pixels.
        build: makes the model.
        settings: clustered rows by default, from careful to bold; those of the paper where it has the model.
    """

    like: str
    size: tuple[int, int]
    build: Callable[[], PreTrainedModel]
    settings: tuple[dict, ...]


def _segmenter() -> PreTrainedModel:
    return SegmenterForSemanticSegmentation(SegmenterConfig(**_LARGE, image_size=640, num_labels=150))


def _dpt(height: int, width: int) -> PreTrainedModel:
    config = DPTConfig(
        **_LARGE,
        image_size=384,
        backbone_out_indices=[5, 11, 17, 23],
        neck_hidden_sizes=[256, 512, 1024, 1024],
        is_hybrid=False,
    )
    model = DPTForDepthEstimation(config)
    if height != width:
        # Without being told the grid, DPT on its own ViT takes it for a square.
        model.neck.register_forward_pre_hook(_Grid(height / width))
    return model


class _Grid:
    """Tells a neck the grid of its tokens, at any resolution of images of one shape."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def __call__(self, module: nn.Module, arguments: tuple) -> tuple:
        tokens = arguments[0][0].shape[1] - 1
        height = round((tokens * self.ratio) ** 0.5)
        return arguments[0], height, tokens // height


def _depth_anything() -> PreTrainedModel:
    backbone = Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=518,
        patch_size=14,
        out_indices=[5, 12, 18, 24],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=1024,
        neck_hidden_sizes=[256, 512, 1024, 1024],
        fusion_hidden_size=256,
    )
    return DepthAnythingForDepthEstimation(config)


def _dinov3() -> PreTrainedModel:
    return DINOv3ViTModel(DINOv3ViTConfig(**_LARGE, image_size=1024, patch_size=16, num_register_tokens=4))


def _mask2former() -> PreTrainedModel:
    backbone = SwinConfig(
        image_size=384,
        embed_dim=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone, num_labels=133, num_queries=200)
    )


def _sam() -> PreTrainedModel:
    config = SamVisionConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        global_attn_indexes=[7, 15, 23, 31],
        mlp_dim=5120,
    )
    return SamVisionModel(config)


def _clusters(after: int, side: int | tuple[int, int], **others: object) -> dict:
    return {"cluster_after": after, "cluster_grid": side, **others}


ARCHITECTURES = {
    "segmenter-l-640": Architecture(
        "rstrudel/segmenter Seg-L-Mask/16", (640, 640), _segmenter, (_clusters(10, 28), _clusters(8, 20))
    ),
    "dpt-large-384": Architecture(
        "Intel/dpt-large", (384, 384), lambda: _dpt(384, 384), (_clusters(12, 18), _clusters(6, 12))
    ),
    "dpt-large-480x640": Architecture(
        "Intel/dpt-large", (480, 640), lambda: _dpt(480, 640), (_clusters(12, (22, 30)), _clusters(6, (15, 20)))
    ),
    "depth-anything-l-518": Architecture(
        "depth-anything/Depth-Anything-V2-Large-hf",
        (518, 518),
        _depth_anything,
        (_clusters(12, 26, expansion="delta"), _clusters(6, 18, expansion="delta")),
    ),
    "dinov3-l-1024": Architecture(
        "facebook/dinov3-vitl16-pretrain-lvd1689m", (1024, 1024), _dinov3, (_clusters(10, 45), _clusters(8, 32))
    ),
    "mask2former-swin-l-1152": Architecture(
        "facebook/mask2former-swin-large-coco-panoptic",
        (1152, 1152),
        _mask2former,
        (_clusters(14, 8, window=7), _clusters(9, 8, window=7)),
    ),
    "sam-h-1024": Architecture(
        "facebook/sam-vit-huge, its vision encoder", (1024, 1024), _sam, (_clusters(14, 10), _clusters(8, 10))
    ),
}


def build_architecture(name: str, seed: int = 0) -> PreTrainedModel:
    """One of `ARCHITECTURES` with random weights, in evaluation mode.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ARCHITECTURES:
        near = did_you_mean(name, ARCHITECTURES)
        raise UserError(
            f"architecture {name!r} must be one of {', '.join(ARCHITECTURES)}; for example dpt-large-384{near}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name].build().eval()
