import json
from pathlib import Path

import pytest
import torch
from adaptive_family import AdaptiveInFull
from family import ACCEL, TINY_DINOV2, FamilyTester
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    DPTConfig,
    DPTForDepthEstimation,
    DPTForSemanticSegmentation,
    DPTModel,
)

import hf_tokaccel as ta
from hf_tokaccel.hosts import clusters

GOLDEN = Path(__file__).parents[1] / "goldens" / "expedit_dpt_vit_8x8_4x4.safetensors"
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
}


class DPTTester(FamilyTester):
    other_size = (48, 48)  # DPT's neck takes the token grid for a square
    flop_ratio = 0.97
    legacy_key = new_key = "encoder.layer.0.attention.attention.query.weight"  # DPT's own ViT was never renamed

    def config(self):
        return DPTConfig(**TINY, backbone_out_indices=[0, 1, 2, 3], num_labels=5)


class TestDPTModel(DPTTester):
    secondary = True
    native, auto = DPTModel, AutoModel


class TestDPTForDepthEstimation(DPTTester):
    native, auto = DPTForDepthEstimation, AutoModelForDepthEstimation
    strict_export = True

    def test_released_expansion_is_the_nearest_cluster(self, fast):
        assert fast.config.accel["expansion"] == "nearest"

    def test_soft_weights_sum_to_one(self, model):
        fast = ta.accelerate(model, {**ACCEL, "expansion": "soft"})
        assert fast.config.accel["normalization"] == "l1"

    def test_only_what_the_neck_reads_is_expanded(self, fast, monkeypatch):
        calls = []
        original = clusters.reconstruct_tokens
        monkeypatch.setattr(
            "hf_tokaccel.hosts.clusters.reconstruct_tokens", lambda *a: calls.append(1) or original(*a)
        )
        self.run(fast, self.images())
        assert len(calls) == 3  # blocks 1, 2, 3; block 0 comes before the clustering


class TestDPTForSemanticSegmentation(DPTTester):
    secondary = True
    native, auto = DPTForSemanticSegmentation, AutoModelForSemanticSegmentation

    def test_loss_with_the_auxiliary_head(self, fast):
        labels = torch.randint(0, 5, (2, *self.image_size), generator=torch.Generator().manual_seed(0))
        fast = ta.accelerate(self.build().train(), ACCEL)
        assert fast.auxiliary_head is not None
        loss = fast(self.images(), labels=labels).loss
        loss.backward()
        assert fast.dpt.encoder.layer[0].attention.attention.query.weight.grad.abs().max() > 0
        assert fast.auxiliary_head.head[0].weight.grad.abs().max() > 0


class TestDPTHybrid(DPTTester):
    """ViT-hybrid: ResNet stem, its first two stages and two blocks feed the neck."""

    slow_graphs = True
    native, auto = DPTForDepthEstimation, AutoModelForDepthEstimation
    image_size = (128, 128)
    other_size = None

    def config(self):
        tiny = {**TINY, "image_size": 128, "patch_size": 16, "neck_hidden_sizes": [16, 16, 8, 8]}
        stem = {
            "model_type": "bit",
            "global_padding": "same",
            "layer_type": "bottleneck",
            "depths": [1, 1, 1],
            "hidden_sizes": [16, 16, 16],
            "embedding_size": 16,
            "num_groups": 4,
            "out_features": ["stage1", "stage2", "stage3"],
            "embedding_dynamic_padding": True,
        }
        return DPTConfig(
            **tiny,
            is_hybrid=True,
            backbone_config=stem,
            backbone_featmap_shape=[1, 16, 8, 8],
            backbone_out_indices=[0, 1, 2, 3],
            neck_ignore_stages=[0, 1],
        )


class TestDPTOnDinov2(DPTTester):
    secondary = True
    native, auto = DPTForDepthEstimation, AutoModelForDepthEstimation
    image_size, grid, other_size = (32, 48), (8, 12), (32, 64)
    legacy_key = "backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.encoder.layer.0.attention.q_proj.weight"

    def config(self):
        return DPTConfig(**TINY, backbone_config={**TINY_DINOV2})


class TestDPTAdaptive(AdaptiveInFull, DPTTester):
    native, auto = DPTForDepthEstimation, AutoModelForDepthEstimation
    test_fresh_process_with_and_without_the_package_imported = (
        FamilyTester.test_fresh_process_with_and_without_the_package_imported
    )


def test_dpt_on_a_backbone_that_is_not_supported_names_those_that_are():
    backbone = {"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    with pytest.raises(ValueError, match=r"resnet.*cannot be accelerated.*depth_anything.*, dinov2.*, dpt.*, vit"):
        ta.accelerate_config(DPTConfig(**TINY, backbone_config=backbone), ACCEL)


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return load_file(GOLDEN), json.loads(file.metadata()["config"])


def golden_model(tensors, settings):
    """The golden's timm-style weights in a `DPTModel`."""
    config = DPTConfig(
        image_size=settings["image"][0],
        patch_size=settings["patch"],
        hidden_size=settings["dim"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["dim"],
        layer_norm_eps=settings["ln_eps"],
        backbone_out_indices=[1, 2, 3, 4],
    )
    weights = {}
    renames = {
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
    }
    for name, value in tensors.items():
        if not name.startswith("model."):
            continue
        name = name.removeprefix("model.")
        if ".attn.qkv." in name:
            prefix, kind = name.replace("blocks.", "encoder.layer.").split("attn.qkv.")
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                weights[f"{prefix}attention.attention.{part}.{kind}"] = chunk
            continue
        for old, new in renames.items():
            name = name.replace(old, new)
        weights[f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name] = value
    model = DPTModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(weights)
    return model


def test_golden(golden):
    tensors, settings = golden
    model = golden_model(tensors, settings)
    fast = ta.accelerate(
        model,
        {
            "cluster_after": settings["clustering_location"] + 1,
            "cluster_grid": int(settings["num_cluster"] ** 0.5),
            "inverse_temperature": settings["temperature"],
            "window": settings["cluster_window"],
            "iterations": settings["n_iters"],
        },
    )
    images = tensors["image"]
    with torch.no_grad():
        dense = model(images, output_hidden_states=True).hidden_states
        states = fast(images, output_hidden_states=True).hidden_states
        with ta.observe_clusters() as seen:
            fast(images)
    for block in range(settings["depth"]):
        for name, actual in ((f"baseline/block{block}", dense), (f"released/block{block}_hooked", states)):
            expected = tensors[name]
            assert (actual[block + 1] - expected).abs().max() <= 1e-4 * expected.abs().max(), name
    expected = tensors["released/feat_after_pooling_with_cls"][:, 1:]
    assert (seen[0].clusters.centroids - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(seen[0].labels().flatten(1), tensors["released/hard_labels"])
