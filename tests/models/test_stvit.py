import copy
import json

import pytest
import torch
from safetensors import safe_open
from semantic import SemanticTester, quietly
from stvit_goldens import GOLDENS, classifier_images, golden
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models.stvit import TokAccelSTViTConfig, TokAccelSTViTForImageClassification, TokAccelSTViTModel
from hf_tokaccel.semantic import initialize
from hf_tokaccel.semantic.layers import SemanticLayer
from hf_tokaccel.semantic.pooling import CenterOffset, WeightedPooling, max_pooling

TOLERANCE = 2e-5
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "num_labels": 5,
}
ALL_SWITCHES = {"center_offset": True, "layer_scale_init_value": 0.1, "generation_layers": 3, "token_grid": [3, 4]}


class STViTTester(SemanticTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    untrained = ("pooling.", "global_centers.")
    misfits = (
        ({"token_grid": [9, 4]}, r"token_grid=\(9, 4\) does not fit.*8 x 8 tokens.*for example token_grid=\(4, 4\)"),
        ({"token_grid": [8, 8]}, r"fewer semantic tokens than the 8 x 8 tokens"),
        ({"token_grid": [6, 4]}, r"token_grid=\(6, 4\).*h one of \[1, 2, 3, 4, 5, 8\]"),
        ({"base_layers": 3}, r"base_layers=3 .*at most 2: the model has 5 layers, 2 generate.*for example"),
        ({"generation_layers": 4}, "base_layers=1 .*at most 0"),
        (
            {"generation_layers": 1, "global_centers": True},
            "global_centers=True .*False with generation_layers=1.*generation_layers=2",
        ),
        ({"recover": True}, "recover=True is not valid"),
        ({"stem": "conv"}, "stem='conv' is not valid: it must be None for models of the ViT family"),
        ({"relative_position_bias": True}, "relative_position_bias=True is not valid"),
    )

    def config(self):
        return ViTConfig(**TINY)


class TestSTViTForImageClassification(STViTTester):
    native, ours = ViTForImageClassification, TokAccelSTViTForImageClassification
    auto = AutoModelForImageClassification
    strict_export = True


class TestSTViTModel(STViTTester):
    secondary = True
    native, ours, auto = ViTModel, TokAccelSTViTModel, AutoModel


class TestEverySwitch(STViTTester):
    secondary = True
    native, ours = ViTForImageClassification, TokAccelSTViTForImageClassification
    auto = AutoModelForImageClassification
    accel = {"method": "semantic_tokens", **ALL_SWITCHES}
    untrained = ("pooling.", "global_centers.", "layer_scale_")
    misfits = (({"base_layers": 2}, "base_layers=2 .*at most 1"),)


class TestMaxPooling(STViTTester):
    secondary = True
    native, ours, auto = ViTModel, TokAccelSTViTModel, AutoModel
    accel = {"method": "semantic_tokens", "pooling": "max", "token_grid": [3, 6], "generation_shortcut": False}
    untrained = ("global_centers.",)
    misfits = (({"token_grid": [9, 3]}, r"token_grid=\(9, 3\).*pooling='max'"),)


class DeiTTester(STViTTester):
    secondary = True

    def config(self):
        return DeiTConfig(**TINY)

    def plain_name(self, name):
        return name.replace("vit.", "deit.")


class TestSTViTOfDeiT(DeiTTester):
    native, ours = DeiTForImageClassification, TokAccelSTViTForImageClassification
    auto = AutoModelForImageClassification


class TestSTViTModelOfDeiT(DeiTTester):
    native, ours, auto = DeiTModel, TokAccelSTViTModel, AutoModel


class TestSTViTOfDeiTWithTeacher(DeiTTester):
    native, ours = DeiTForImageClassificationWithTeacher, TokAccelSTViTForImageClassification
    auto = AutoModelForImageClassification

    def plain_name(self, name):
        return "cls_" + name if name.startswith("classifier.") else super().plain_name(name)


# agreement with the reference


def golden_name(name):
    """Name of a golden's parameter here."""
    fixed = {
        "pos_embed": "vit.embeddings.position_embeddings",
        "G": "vit.global_centers.weight",
    }
    prefixes = {
        "proj.": "vit.embeddings.patch_embeddings.projection.",
        "head.": "classifier.",
        "norm.": "vit.layernorm.",
        "pool.": "vit.pooling.weighted.",
        "blocks.": "vit.layers.",
    }
    parts = {
        "gen_mask.0.": "mask.depthwise.",
        "gen_mask.1.norm.": "mask.norm.",
        "gen_mask.3.": "mask.pointwise.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.q.": ".attention.q_proj.",
        ".attn.kv.": ".attention.kv.",
        ".attn.proj.": ".attention.o_proj.",
    }
    if name in fixed:
        return fixed[name]
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    name = prefixes[prefix] + name.removeprefix(prefix)
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


def golden_state(golden):
    state = {}
    for key, value in golden.items():
        if not key.startswith("state."):
            continue
        name = golden_name(key.removeprefix("state."))
        if ".kv." in name:
            state[name.replace(".kv.", ".k_proj.")], state[name.replace(".kv.", ".v_proj.")] = value.chunk(2)
        else:
            state[name] = value.flatten(1) if "pointwise" in name else value
    return state


def assert_near(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE


def test_the_reconstructed_deit_agrees_layer_by_layer():
    values, images = golden("stvit_deit_recon_d12"), classifier_images()
    with safe_open(GOLDENS / "stvit_deit_recon_d12.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["config"])
    config = TokAccelSTViTConfig(
        hidden_size=settings["C"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["C"],
        num_hidden_layers=settings["depth"],
        num_labels=settings["ncls"],
        layer_norm_eps=settings["eps"],
        accel=ta.SemanticTokenConfig(base_layers=settings["base"], generation_layers=settings["stgm"]),
    )
    model = TokAccelSTViTForImageClassification(config).eval()
    model.load_state_dict(golden_state(values))
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
        pooled = model.vit(images).pooler_output
        maps = output.hidden_states[4].unflatten(1, (14, 14))
        _, weights = model.vit.pooling.weighted.windows_and_weights(maps, (4, 4))
        centers = model.vit.pooling(maps)
    for index, name in {4: "X", 5: "S1", 6: "S2", 12: "S_final"}.items():
        assert_near(output.hidden_states[index], values[f"inter.{name}"])
    assert_near(centers, values["inter.P"])
    assert_near(weights, values["inter.pool_weights"])
    assert_near(pooled, values["inter.pooled"])
    assert_near(output.logits, values["out.logits"])


def test_pooling_agrees():
    values = golden("stvit_pooling")
    maps = values["max7to3.in"].permute(0, 2, 3, 1)
    for side in (2, 3, 4):
        expected = values[f"max7to{side}.out"].flatten(2).transpose(1, 2)
        assert torch.equal(max_pooling(maps, (side, side)), expected)
    pooling = WeightedPooling(12)
    state = {name.removeprefix("weighted."): value for name, value in values.items() if ".state." in name}
    state = {
        golden_name(n.replace("state.", "pool.")).removeprefix("vit.pooling.weighted."): v for n, v in state.items()
    }
    pooling.load_state_dict({n: v.flatten(1) if "pointwise" in n else v for n, v in state.items()})
    maps = values["weighted.in"].permute(0, 2, 3, 1)
    with torch.no_grad():
        assert_near(pooling.windows_and_weights(maps, (4, 4))[1], values["weighted.weights"])
        assert_near(pooling(maps, (4, 4)), values["weighted.tokens"])


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (5, 8)])
@pytest.mark.parametrize("grid", [(3, 3), (4, 2), (5, 1), (5, 7)])
def test_max_pooling_is_that_of_torch(size, grid):
    maps = torch.randn(2, *size, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.adaptive_max_pool2d(maps.permute(0, 3, 1, 2), grid).flatten(2).transpose(1, 2)
    assert torch.equal(max_pooling(maps, grid), expected)


def test_weighted_pooling_pads_with_what_has_no_weight():
    """At weights that are all alike, centres are the means of what a window has of the map."""
    pooling = WeightedPooling(2)
    torch.nn.init.zeros_(pooling.mask.pointwise.weight)
    maps = torch.randn(1, 5, 7, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        centers = pooling(maps, (2, 3)).unflatten(1, (2, 3))
    # One row and two columns of padding: windows of 3 x 3 from row 0 and column -1.
    expected = [
        [maps[0, rows, columns].mean((0, 1)) for columns in (slice(0, 2), slice(2, 5), slice(5, 7))]
        for rows in (slice(0, 3), slice(3, 5))
    ]
    assert torch.allclose(centers[0], torch.stack([torch.stack(row) for row in expected]), atol=1e-6)


def test_center_offset_moves_centers_by_their_neighbors():
    torch.manual_seed(0)
    offset, centers = CenterOffset(4), torch.randn(1, 9, 4)
    changed = centers.clone()
    changed[0, 0] += 1
    with torch.no_grad():
        moved = (offset(changed, (3, 3)) - offset(centers, (3, 3)) - (changed - centers)).abs().amax(-1)[0]
    assert (moved > 1e-6).nonzero().flatten().tolist() == [0, 1, 3, 4]


# what the model is made of


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return STViTTester.build(ViTForImageClassification(ViTConfig(**TINY)).eval())


def test_image_tokens_are_dropped_after_generation(tiny):
    eager = copy.deepcopy(tiny)
    eager.set_attn_implementation("eager")
    output = eager(torch.randn(1, 3, 32, 32), output_hidden_states=True, output_attentions=True)
    assert [state.shape[1] for state in output.hidden_states] == [64, 64, 16, 16, 16, 16]
    expected = [(64, 64), (16, 64), (16, 16 + 64), (16, 16), (16, 16)]
    assert [tuple(weights.shape[2:]) for weights in output.attentions] == expected


def test_published_parts_at_depth_12():
    config = TokAccelSTViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    with torch.device("meta"):
        model = TokAccelSTViTForImageClassification(config)
        plain = DeiTForImageClassification(DeiTConfig(**{**config.to_dict(), "model_type": "deit"}))
    assert [isinstance(layer, SemanticLayer) for layer in model.vit.layers] == [False] * 4 + [True] * 8
    # The specification's count: without class token and, in Transformers, distillation token; 13 C and 16 C more.
    counts = [sum(p.numel() for p in module.parameters()) for module in (model, plain)]
    assert counts[0] == counts[1] - 4 * 384 + (13 + 16) * 384


def test_drop_path_rises_over_all_layers_and_acts_in_training_only(tmp_path):
    plain = ViTForImageClassification(ViTConfig(**TINY))
    plain.save_pretrained(tmp_path)
    model = quietly(TokAccelSTViTForImageClassification.from_pretrained, tmp_path, drop_path_rate=0.4)
    assert model.config.drop_path_rate == 0.4
    rates = [dropout[1].drop_prob for dropout in (layer.dropout for layer in model.vit.layers[1:])]
    assert type(model.vit.layers[0].dropout) is torch.nn.Dropout
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    images = torch.randn(16, 3, 32, 32)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model.eval()(images).logits, model(images).logits)
        model.train()
        assert not torch.equal(model(images).logits, model(images).logits)


def test_other_image_sizes_interpolate_positions(tiny):
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"size \(32, 48\) is not valid.*\(32, 32\).*interpolate_pos_encoding=True"):
        tiny(images)
    with pytest.raises(ValueError, match=r"multiples of the patch size \(4, 4\), for example \(32, 44\)"):
        tiny(images[..., :46], interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"token_grid=\(4, 4\) does not fit.*8 x 2 tokens"):
        tiny(images[..., :8], interpolate_pos_encoding=True)
    with torch.no_grad():
        output = tiny(images, interpolate_pos_encoding=True, output_hidden_states=True)
        square = images[..., :32]
        assert torch.equal(tiny(square, interpolate_pos_encoding=True).logits, tiny(square).logits)
    assert [state.shape[1] for state in output.hidden_states] == [96, 96, 16, 16, 16, 16]


def test_images_that_are_not_square():
    config = ViTConfig(**{**TINY, "image_size": (16, 40)})
    plain = ViTForImageClassification(config)
    model, report = quietly(initialize, plain, ta.SemanticTokenConfig(token_grid=(2, 5)))
    positions = plain.vit.embeddings.position_embeddings
    assert torch.equal(model.vit.embeddings.position_embeddings, positions[:, 1:])
    assert "vit.embeddings.position_embeddings" in report.initialized
    assert model.vit(torch.randn(1, 3, 16, 40)).last_hidden_state.shape == (1, 10, 32)


def test_image_tokens_reach_semantic_tokens_of_other_windows(tiny):
    """Generation layers attend to the whole image, so that a change of one corner shows in the opposite token."""
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., :4, :4] += 3
    with torch.no_grad():
        a, b = (tiny.vit(x, output_hidden_states=True).hidden_states[2][0, -1] for x in (images, changed))
    assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["attention_mask", "bool_masked_pos"])
def test_masks_are_refused(tiny, name):
    with pytest.raises(ValueError, match=f"{name} is not valid for TokAccelSTViT.*leave it out"):
        tiny(torch.randn(1, 3, 32, 32), **{name: torch.ones(1, 65)})


def test_a_head_that_the_folder_lacks_is_untrained_too(tmp_path):
    ViTModel(ViTConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"8 are untrained \(classifier.bias, classifier.weight, vit.global"):
        TokAccelSTViTForImageClassification.from_pretrained(tmp_path)


def test_other_number_of_labels(tmp_path):
    ViTForImageClassification(ViTConfig(**TINY)).save_pretrained(tmp_path)
    model = quietly(
        TokAccelSTViTForImageClassification.from_pretrained, tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    assert model.classifier.out_features == 3
    assert model.config.num_labels == 3
