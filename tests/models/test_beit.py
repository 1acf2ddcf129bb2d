import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, TINY_DINOV2, FamilyTester, flatten
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BeitBackbone,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitModel,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)

import hf_tokaccel as ta
from hf_tokaccel.hosts import clusters
from hf_tokaccel.models.beit import TokAccelBeitBackbone, TokAccelBeitForMaskedImageModeling
from hf_tokaccel.registry import accelerated_class

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "layer_scale_init_value": 1.0,
    "use_relative_position_bias": True,
    "num_labels": 5,
}


class BeitTester(FamilyTester):
    """Position biases start at zero, which would prove nothing."""

    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    options = {}

    def config(self):
        return BeitConfig(**{**TINY, **self.options})

    def build(self):
        model = super().build()
        for name, parameter in model.named_parameters():
            if "position_bias_table" in name:
                torch.nn.init.normal_(parameter)
        return model


class TestBeitModel(BeitTester):
    secondary = True
    native, auto = BeitModel, AutoModel


class TestBeitModelWithSharedBias(BeitTester):
    secondary = True
    native, auto = BeitModel, AutoModel
    image_size, grid = (32, 48), (8, 12)
    reentrant = False
    options = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}


class TestBeitForImageClassification(BeitTester):
    secondary = True
    native, auto = BeitForImageClassification, AutoModelForImageClassification


class TestBeitForMaskedImageModeling(BeitTester):
    secondary = True
    native, auto = BeitForMaskedImageModeling, TokAccelBeitForMaskedImageModeling
    reentrant = False
    options = {"use_mask_token": True, "vocab_size": 40, "use_shared_relative_position_bias": True}


class TestBeitForSemanticSegmentation(BeitTester):
    secondary = True
    native, auto = BeitForSemanticSegmentation, AutoModelForSemanticSegmentation
    flop_ratio = 0.999
    options = {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 8, "pool_scales": [2, 4]}


class TestBeitBackbone(BeitTester):
    native, auto = BeitBackbone, TokAccelBeitBackbone
    image_size, grid = (32, 48), (8, 12)
    reentrant = False
    options = {"out_indices": [1, 2, 4], "use_shared_relative_position_bias": True}


class TestBeitAdaptive(Adaptive, TestBeitBackbone):
    pass


class TestDPTOnBeit(BeitTester):
    secondary = True
    native, auto = DPTForDepthEstimation, AutoModelForDepthEstimation
    other_size = (48, 48)  # DPT's neck takes the token grid for a square
    flop_ratio = 0.97

    def config(self):
        backbone = {**TINY, "model_type": "beit", "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
        return DPTConfig(
            backbone_config=backbone, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, initializer_range=0.2
        )


def detr(backbone):
    sizes = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    config = DetrConfig(backbone_config=backbone, d_model=16, num_queries=4, init_std=0.2, **sizes)
    return DetrForObjectDetection(config)


def mask2former(backbone):
    pytest.importorskip("scipy")
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        init_std=0.2,
    )
    return Mask2FormerForUniversalSegmentation(config)


@pytest.mark.parametrize("head", [detr, mask2former])
@pytest.mark.parametrize("kind", ["beit", "dinov2"])
def test_heads_with_and_without_a_class_of_their_own_run_on_an_accelerated_backbone(head, kind):
    backbones = {
        "beit": {**TINY, "model_type": "beit", "out_indices": [1, 2, 3, 4]},
        "dinov2": {**TINY_DINOV2, "reshape_hidden_states": True},
    }
    torch.manual_seed(0)
    model, images = head(backbones[kind]).eval(), BeitTester().images()
    identity = {**ACCEL, "cluster_grid": [8, 8], "iterations": 0, "expansion": "nearest"}

    def run(module):
        with torch.no_grad():
            return flatten(tuple(value for value in module(images).values() if not isinstance(value, list)))

    native, fast = run(model), ta.accelerate(model, ACCEL)
    assert type(fast) is (accelerated_class(type(model)) or type(model))
    for same in (ta.accelerate(model, None), ta.accelerate(model, identity), ta.to_native(fast)):
        assert all(torch.equal(a, b) for a, b in zip(run(same), native, strict=True))
    actual = run(fast)
    assert [a.shape for a in actual] == [b.shape for b in native]
    BeitTester().assert_differs(actual, native)


def reconstructions(monkeypatch, model, **kwargs):
    """How many feature maps one pass rebuilds."""
    calls = []
    original = clusters.reconstruct_tokens
    with monkeypatch.context() as patch:
        patch.setattr("hf_tokaccel.hosts.clusters.reconstruct_tokens", lambda *a: calls.append(1) or original(*a))
        FamilyTester.run(model, FamilyTester().images(), **kwargs)
    return len(calls)


def resized_bias(table, grid, cluster_grid):
    """(heads, 1 + M, 1 + M) bias between clusters, from a table of a token grid; written out independently."""
    (height, width), clusters = cluster_grid, cluster_grid[0] * cluster_grid[1]
    table = table.T
    tokens = table[:, :-3].reshape(1, -1, 2 * grid[0] - 1, 2 * grid[1] - 1)
    offsets = torch.nn.functional.interpolate(tokens, (2 * height - 1, 2 * width - 1), mode="bilinear")[0]
    rows, columns = torch.arange(clusters) // width, torch.arange(clusters) % width
    y, x = rows[:, None] - rows + height - 1, columns[:, None] - columns + width - 1
    bias = torch.empty(len(table), 1 + clusters, 1 + clusters)
    bias[:, 1:, 1:] = offsets[:, y, x]
    bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = table[:, -3, None], table[:, -2, None], table[:, -1]
    return bias


def test_only_what_the_head_reads_is_reconstructed(monkeypatch):
    heads = {
        BeitForImageClassification(BeitConfig(**TINY)): 1,  # the mean over patches
        BeitForImageClassification(BeitConfig(**TINY, use_mean_pooling=False)): 0,  # the class token
        BeitForSemanticSegmentation(BeitConfig(**TINY, out_indices=[1, 2, 3, 4], auxiliary_channels=8)): 2,
        BeitBackbone(BeitConfig(**TINY, out_indices=[1, 3, 4])): 2,
    }
    for model, count in heads.items():
        fast = ta.accelerate(model.eval(), ACCEL)
        assert reconstructions(monkeypatch, fast) == count
        assert reconstructions(monkeypatch, fast, output_hidden_states=True) == 3


def test_clusters_attend_with_the_tables_resized_to_their_grid():
    model = ta.accelerate(TestBeitBackbone().build().eval(), {**ACCEL, "cluster_grid": [4, 3]}).beit
    model.set_attn_implementation("eager")
    block, seen = model.layers[2], {}
    block.attention.q_proj.register_forward_hook(lambda m, i, o: seen.update(query=o))
    block.attention.k_proj.register_forward_hook(lambda m, i, o: seen.update(key=o))
    with torch.no_grad():
        attention = model(BeitTester().images(), output_attentions=True).attentions[2]
        query, key = (seen[name].unflatten(2, (2, 16)).transpose(1, 2) for name in ("query", "key"))
        tables = [
            bias.relative_position_bias_table for bias in (model.shared_position_bias, block.relative_position_bias)
        ]
        bias = sum(resized_bias(table, (8, 8), (4, 3)) for table in tables)
        torch.testing.assert_close(attention, (query @ key.transpose(2, 3) / 4 + bias).softmax(dim=-1))


def tables_of(model, index):
    """Of relative positions, those of this block and those that all share."""
    tables = {name: p for name, p in model.named_parameters() if name.endswith("position_bias_table")}
    return [table for name, table in tables.items() if f".{index}." in name or "layer" not in name]


def expected_attention(query, key, tables, regions):
    """Of adaptive clusters of 8 x 8 tokens: biases of the tokens at their middle, and their sizes; written out."""
    query, key = (part.unflatten(2, (2, 16)).transpose(1, 2) for part in (query, key))
    logits, tokens = query @ key.transpose(2, 3) / 4, torch.arange(64)
    biases = sum(resized_bias(table, (8, 8), (8, 8)) for table in tables) if tables else torch.zeros(2, 65, 65)
    for image, rows in enumerate(regions.rows):
        members = [tokens[rows == index] for index in range(regions.sizes.shape[1])]
        middles = [((m // 8).float().mean().round() * 8 + (m % 8).float().mean().round()).int() for m in members]
        places = torch.tensor([0, *(1 + middle for middle in middles)])
        sizes = torch.tensor([1.0, *(len(m) for m in members)])
        logits[image] += biases[:, places][:, :, places] + sizes.log()
    return logits.softmax(-1)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_adaptive_clusters_attend_as_the_tokens_at_their_middle(own, shared):
    tester = BeitTester()
    tester.native = BeitModel
    tester.options = {"use_relative_position_bias": own, "use_shared_relative_position_bias": shared}
    torch.manual_seed(0)
    model = ta.accelerate(tester.build().eval(), {"cluster_after": 1, "clusters": 0.3})
    model.set_attn_implementation("eager")
    block, seen = model.layers[1], {}
    block.attention.q_proj.register_forward_hook(lambda m, i, o: seen.update(query=o))
    block.attention.k_proj.register_forward_hook(lambda m, i, o: seen.update(key=o))
    with torch.no_grad(), ta.observe_clusters() as observed:
        attention = model(tester.images(), output_attentions=True).attentions[1]
        expected = expected_attention(seen["query"], seen["key"], tables_of(model, 1), observed[0].clusters.regions)
    torch.testing.assert_close(attention, expected)


def test_the_shared_bias_is_computed_once_for_tokens_and_once_for_clusters():
    fast = ta.accelerate(TestBeitBackbone().build().eval(), ACCEL)
    calls = []
    fast.beit.shared_position_bias.register_forward_hook(lambda module, args, output: calls.append(args[0]))
    BeitTester.run(fast, BeitTester().images())
    assert calls == [(8, 8), (4, 4)]
