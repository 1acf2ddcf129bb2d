"""The closed form of FLOPs against the counter of torch, and the setting that follows from it."""

import re

import pytest
import torch
from transformers import (
    BertConfig,
    DepthAnythingConfig,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LwDetrViTBackbone,
    LwDetrViTConfig,
    RfDetrDinov2Backbone,
    Sam2HieraDetConfig,
    Sam2HieraDetModel,
    SamVisionConfig,
    SamVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    VitDetConfig,
    VitDetModel,
    ViTModel,
)
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

import hf_tokaccel as ta
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.tuning.encoder import describe_encoder

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}
SWIN = {"image_size": 64, "patch_size": 2, "embed_dim": 16, "depths": [1, 4], "num_heads": [2, 2], "window_size": 5}
HIERA = {
    "image_size": [96, 96],
    "hidden_size": 16,
    "embed_dim_per_stage": [16, 32, 64, 128],
    "blocks_per_stage": [1, 2, 4, 2],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 5, 3],
    "global_attention_blocks": [5],
}
# Class, configuration, image size, what the blocks are called, and a span on clusters.
CASES = {
    "vit": (ViTModel, ViTConfig(**TINY, intermediate_size=64), (32, 32), r"layers?\.\d+", (1, (5, 4), None)),
    "oblong": (
        ViTModel,
        ViTConfig(**{**TINY, "image_size": [32, 48]}, intermediate_size=64),
        (32, 48),
        r"layers?\.\d+",
        (2, (5, 7), 3),
    ),
    "gated": (
        DINOv3ViTModel,
        DINOv3ViTConfig(**TINY, intermediate_size=64, use_gated_mlp=True, num_register_tokens=3),
        (32, 48),
        r"layers?\.\d+",
        (1, (4, 6), 3),
    ),
    "no class token": (
        SiglipVisionModel,
        SiglipVisionConfig(**TINY, intermediate_size=64),
        (32, 32),
        r"layers\.\d+",
        (1, (5, 5), 3),
    ),
    "video": (
        VideoMAEModel,
        VideoMAEConfig(**TINY, intermediate_size=64, num_frames=4),
        (32, 32),
        r"layer\.\d+",
        (1, (5, 5), 3),
    ),
    "windows and padding": (
        SamVisionModel,
        SamVisionConfig(**TINY, window_size=5, global_attn_indexes=[0, 2], output_channels=16),
        (32, 32),
        r"layers\.\d+",
        (1, (3, 3), 4),
    ),
    "windows and convolutions": (
        VitDetModel,
        VitDetConfig(
            **TINY,
            window_size=3,
            window_block_indices=[0, 2],
            residual_block_indices=[1, 3],
            use_relative_position_embeddings=True,
        ),
        (32, 40),
        r"layer\.\d+",
        (1, (2, 2), 4),
    ),
    "windows in the batch": (
        RfDetrDinov2Backbone,
        RfDetrDinov2Config(**TINY, num_windows=2, out_indices=[2, 4]),
        (32, 32),
        r"layer\.\d+",
        (1, (3, 3), 4),
    ),
    "windows of LW-DETR": (
        LwDetrViTBackbone,
        LwDetrViTConfig(**TINY, num_windows=4, window_block_indices=[0, 2], out_indices=[2, 4]),
        (32, 32),
        r"layer\.\d+",
        (1, (3, 3), 4),
    ),
    "stages": (SwinModel, SwinConfig(**SWIN), (64, 50), r"blocks\.\d+", (2, (3, 3), 4)),
    "stages that pool": (Sam2HieraDetModel, Sam2HieraDetConfig(**HIERA), (96, 96), r"blocks\.\d+", (4, (3, 3), 6)),
}


def block_flops(model, images, name):
    """FLOPs inside of the blocks as torch counts them."""
    with torch.no_grad(), flop_counter() as counter:
        model(images)
    counts = counter.get_flop_counts()
    return sum(sum(count.values()) for module, count in counts.items() if re.search(rf"\.{name}$", module))


@pytest.mark.parametrize("case", CASES)
def test_closed_form_is_what_torch_counts(case):
    cls, config, size, name, (after, grid, until) = CASES[case]
    model = cls(config).eval()
    images = torch.randn(1, *((4,) if case == "video" else ()), 3, *size)
    encoder = describe_encoder(model.config, size)
    # Hiera's attention computes products of heads that nothing reads, which the closed form leaves out.
    tolerance = 2e-2 if case == "stages that pool" else 2e-3
    assert encoder.flops == pytest.approx(block_flops(model, images, name), rel=tolerance)
    accel = ta.TokenClusteringConfig(
        cluster_after=after, cluster_grid=grid, reconstruct_after=until, similarity_on="tokens"
    )
    clustered = block_flops(ta.accelerate(model, accel), images, name)
    assert encoder.clustered(after, grid, until) == pytest.approx(clustered, rel=tolerance)
    assert clustered < 0.95 * encoder.flops


@pytest.mark.parametrize("case", CASES)
def test_setting_for_a_speedup_fits_the_model_and_reaches_it(case):
    cls, config, size, name, _ = CASES[case]
    model = cls(config).eval()
    setting = ta.for_speedup(config, size, 1.25, expansion="nearest")
    assert setting.expansion == "nearest"
    images = torch.randn(1, *((4,) if case == "video" else ()), 3, *size)
    ratio = block_flops(model, images, name) / block_flops(ta.accelerate(model, setting, size), images, name)
    assert ratio >= 1.25


def test_setting_for_a_speedup_is_near_that_of_the_paper():
    config = ViTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    setting = ta.for_speedup(config, 640, 1.58)  # what 28 x 28 after 10 of 24 blocks gives
    assert 8 <= setting.cluster_after <= 12
    assert 24 <= setting.cluster_grid[0] <= 31
    bolder = ta.for_speedup(config, 640, 2.5)
    assert bolder.cluster_after <= setting.cluster_after
    assert bolder.cluster_grid < setting.cluster_grid


def test_what_cannot_be_reached_is_told_with_the_best():
    config = SwinConfig(**SWIN)
    with pytest.raises(ValueError, match=r"speedup=40 cannot be reached.*the best .* is (\d+\.\d+)") as error:
        ta.for_speedup(config, 64, 40)
    best = float(re.search(r"is (\d+\.\d+)", str(error.value))[1])
    assert ta.for_speedup(config, 64, best - 0.01).cluster_grid == (1, 1)


@pytest.mark.parametrize("speedup", [1, 0.5, "fast", True, float("nan")])
def test_bad_speedups_are_refused(speedup):
    with pytest.raises(ValueError, match=r"speedup=.* above 1, for example"):
        ta.for_speedup(ViTConfig(**TINY), 32, speedup)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="cannot be accelerated"):
        ta.for_speedup(BertConfig(), 32, 1.5)
    with pytest.raises(ValueError, match=r"cluster_after.*leave them out"):
        ta.for_speedup(ViTConfig(**TINY), 32, 1.5, cluster_after=2)


def test_heads_are_described_by_their_backbone():
    config = DepthAnythingConfig()
    assert describe_encoder(config, 518) == describe_encoder(config.backbone_config, 518)
