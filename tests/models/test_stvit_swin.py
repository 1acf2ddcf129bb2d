import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family import flatten
from semantic import SemanticTester
from stvit_goldens import classifier_images, detector_images, golden
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.swin.modeling_swin import SwinLayer

import hf_tokaccel as ta
from hf_tokaccel.convert.stvit import build_model
from hf_tokaccel.hosts.change import become
from hf_tokaccel.models.stvit_swin import (
    TokAccelSTViTSwinBackbone,
    TokAccelSTViTSwinForImageClassification,
    TokAccelSTViTSwinModel,
)
from hf_tokaccel.semantic import units
from hf_tokaccel.semantic.layers import SemanticLayer
from hf_tokaccel.semantic.stage import StageMap
from hf_tokaccel.semantic.swin_layer import WindowLayer
from hf_tokaccel.semantic.windows import Axis, join, key_windows, partition

TOLERANCE = 2e-5
# The third stage has a map of 8 x 8 tokens, so 2 x 2 windows.
TINY = {
    "image_size": 64,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2, 5, 2],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.2,
    "num_labels": 5,
}
UNIT = [1, 1, 6, 2]
PLAIN = {"method": "semantic_tokens", "token_grid": [2, 2]}
RECOVER = {**PLAIN, "recover": True}
CLASSIFICATION = {**RECOVER, "formulation": "classification"}


class SwinTester(SemanticTester):
    accel = PLAIN
    image_size = (64, 64)
    legacy_key, new_key = "attention.self.query", "attention.q_proj"
    untrained = ("layer_scale_",)
    zeros = ("relative_position_bias", "running_mean")
    depths = TINY["depths"]
    changes = {}

    def config(self):
        return SwinConfig(**{**TINY, "depths": self.depths, **self.changes})

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        torch.manual_seed(0)
        model = cls.native(cls().config()).eval()
        for name, parameter in model.named_parameters():
            if "bias_table" in name:
                torch.nn.init.normal_(parameter)  # zero at first, which would hide them
        return model


class TestSTViTSwinForImageClassification(SwinTester):
    slow_graphs = True
    native, ours = SwinForImageClassification, TokAccelSTViTSwinForImageClassification
    auto = AutoModelForImageClassification
    image_size = (60, 50)
    misfits = (
        ({"token_grid": 4}, r"token_grid=\(4, 4\) .*fewer semantic tokens than the 4 x 4 tokens of a window"),
        ({"token_grid": [2, 5]}, r"token_grid=\(2, 5\) .*w one of \[1, 2, 3, 4\].*for example"),
        ({"base_layers": 3}, r"base_layers=3 .*at most 2: stage 3 of depths \[1, 2, 5, 2\] has 5 layers"),
        ({"generation_layers": 1, "global_centers": True}, "global_centers=True .*global_centers=False"),
        ({"key_window": 3}, "key_window=3 .*at least window_size=4, for example key_window=7"),
        ({"stem": "conv"}, "patch_size=2 is not valid: it must be 4 with stem='conv'"),
        ({"semantic_layers": 2}, "semantic_layers=2 .*None with recover=False"),
        ({"formulation": "detection"}, "formulation='detection' .*None with recover=False"),
    )


class TestSTViTSwinModel(SwinTester):
    secondary = True
    native, ours, auto = SwinModel, TokAccelSTViTSwinModel, AutoModel
    misfits = TestSTViTSwinForImageClassification.misfits[:1]


class TestEverySwitch(SwinTester):
    secondary = True
    native, ours = SwinForImageClassification, TokAccelSTViTSwinForImageClassification
    auto = AutoModelForImageClassification
    image_size = (128, 128)
    changes = {"patch_size": 4, "image_size": 128}
    accel = {
        **PLAIN,
        "token_grid": [2, 3],
        "key_window": 5,
        "stem": "conv",
        "merging": "linear",
        "global_centers": True,
        "relative_position_bias": True,
        "conv_position": True,
        "center_offset": True,
        "pooling": "weighted",
        "base_layers": 1,
        "generation_layers": 3,
    }
    untrained = (
        "layer_scale_",
        "patch_embeddings.",
        "layers.2.downsample.",
        "global_centers",
        "conv_position",
        "pooling.",
        "layers.2.blocks.4.attention.relative_position_bias",
    )
    misfits = (({"base_layers": 2}, "base_layers=2 .*at most 1"),)
    flop_ratio = 1.1  # its stem does more than the host's


class RecoveringTester(SwinTester):
    depths = UNIT
    accel = RECOVER
    other = {"generation_shortcut": False}
    misfits = (
        ({"semantic_layers": 3}, r"base_layers=1 .*= 7 layers divide the 6 layers of stage 3 of depths.*base_layers="),
        ({"key_window": 5}, "key_window=5 .*None with recover=True"),
        ({"merging": "grid"}, "merging='grid' .*None with recover=True"),
        ({"global_centers": True}, "global_centers=True .*must be False for formulation='detection'"),
        ({"relative_position_bias": True}, "relative_position_bias=True .*must be False for formulation='detection'"),
        ({"formulation": "classification", "pad_mask": "released"}, "pad_mask='released' .*pads nothing"),
    )


class TestSTViTRSwinForImageClassification(RecoveringTester):
    secondary = True
    native, ours = SwinForImageClassification, TokAccelSTViTSwinForImageClassification
    auto = AutoModelForImageClassification
    accel = CLASSIFICATION
    misfits = RecoveringTester.misfits[:3]


class TestUnitsWithEverySwitch(RecoveringTester):
    secondary = True
    native, ours = SwinForImageClassification, TokAccelSTViTSwinForImageClassification
    auto = AutoModelForImageClassification
    depths = [1, 1, 10, 1]
    accel = {
        **CLASSIFICATION,
        "semantic_layers": 1,
        "global_centers": True,
        "relative_position_bias": True,
        "generation_shortcut": False,
    }
    untrained = ("layer_scale_", "global_centers", *(f"2.blocks.{i}.attention.relative_position_bias" for i in (3, 8)))
    misfits = (({"semantic_layers": 2}, "base_layers=1 .*= 6 layers divide the 10"),)
    other = {"generation_shortcut": True}


class TestSTViTRSwinModel(RecoveringTester):
    secondary = True
    native, ours, auto = SwinModel, TokAccelSTViTSwinModel, AutoModel
    # 13 x 9 tokens in the third stage, so windows of which each reads a part of the map only.
    image_size = (100, 70)


class TestSTViTRSwinBackbone(RecoveringTester):
    strict_export = True
    native, ours, auto = SwinBackbone, TokAccelSTViTSwinBackbone, TokAccelSTViTSwinBackbone
    image_size = (100, 70)
    changes = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    idle = ("swin.layernorm.weight", "swin.layernorm.bias")


class TestReleasedDetector(RecoveringTester):
    secondary = True
    native, ours, auto = SwinBackbone, TokAccelSTViTSwinBackbone, TokAccelSTViTSwinBackbone
    image_size = (128, 136)
    changes = {**TestSTViTRSwinBackbone.changes, "patch_size": 4}
    accel = {**RECOVER, "pad_mask": "released", "stem": "conv", "conv_position": True}
    untrained = ("layer_scale_", "patch_embeddings.", "conv_position")
    idle = TestSTViTRSwinBackbone.idle
    flop_ratio = 1.3  # its stem, and zeros around a small map that take part


# agreement with the released code


def released(golden, **options):
    state = {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}
    return build_model(Path("golden"), state, **options)


def states_of_blocks(model, images, in_windows=()):
    """The output of a model, and what leaves each block of its third stage; of some the windows, joined to a map."""
    stage, seen = model.swin.encoder.layers[2], {}

    def keep(index):
        def hook(module, args, output):
            seen[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(keep(index)) for index, block in enumerate(stage.blocks)]
    with torch.no_grad():
        output = model(images)
    for handle in handles:
        handle.remove()
    size = [-(-side // 16) for side in images.shape[-2:]]
    sizes = StageMap(tuple(size), 7, (3, 3))
    for index in in_windows:
        seen[index] = sizes.join(seen[index].reshape(-1, 9, 32))
    return output, seen


@pytest.mark.parametrize("flags", ["released", "shortcut_global"])
def test_agrees_with_the_released_classifier(flags):
    values = golden(f"stvit_r_swin_cls_d6_{flags}")
    model = released(values, shortcut=flags != "released")
    images = classifier_images()
    output, blocks = states_of_blocks(model, images, in_windows=(1, 3))
    assert (output.logits - values["out.logits"]).abs().max() <= TOLERANCE
    for index, states in blocks.items():
        assert (states - values[f"inter.stage3_block{index:02}"]).abs().max() <= TOLERANCE
    with torch.no_grad():
        output = model.swin(images, output_hidden_states=True)
    patches, second, third, fourth = (output.hidden_states[i] for i in (0, 2, 3, 4))
    pairs = {"stage2_out": second, "stage3_out": third, "stage4_out": fourth}
    pairs["patch_embed_img0_first64tokens"] = patches[:1, :64]
    for name, states in pairs.items():
        assert (states - values[f"inter.{name}"]).abs().max() <= TOLERANCE, name
    assert (output.pooler_output - values["out.pooled"]).abs().max() <= TOLERANCE


DETECTOR_INPUTS = ["img_h224_w112", "img_h160_w200", "img_h112_w176", "img_h80_w112"]


@pytest.fixture(scope="module")
def detector():
    values = golden("stvit_r_det_backbone_d6")
    return released(values), values, detector_images()


def with_masks(model, kind):
    model = copy.deepcopy(model)
    stage = model.swin.encoder.layers[2]
    stage.setting = replace(stage.setting, pad_mask=kind)
    return model


@pytest.mark.parametrize("name", DETECTOR_INPUTS)
def test_agrees_with_the_released_detection_backbone(detector, name):
    """Its mistakes included, which are in the padding mask."""
    model, values, inputs = detector
    output, blocks = states_of_blocks(model, inputs[name], in_windows=(1, 2))
    for level, states in enumerate(output.feature_maps):
        assert (states - values[f"feat.{name}.pad_mask_true.{level}"]).abs().max() <= TOLERANCE
    for index in (1, 2, 4, 5):
        # Without padding the released mask adds -1000 to every logit, which costs it three digits of these.
        tolerance = 1e-4 if name == "img_h224_w112" else TOLERANCE
        expected = values[f"inter.{name}.pad_mask_true.stage3_block{index:02}"]
        assert (blocks[index] - expected).abs().max() <= tolerance


@pytest.mark.parametrize("name", DETECTOR_INPUTS)
def test_agrees_with_the_released_detection_backbone_without_its_mask(detector, name, monkeypatch):
    model, values, inputs = detector
    monkeypatch.setattr(units, "released_outside", lambda windows, *args: torch.zeros_like(windows.index) > 0)
    with torch.no_grad():
        maps = model(inputs[name]).feature_maps
    for level in (2, 3):
        assert (maps[level] - values[f"feat.{name}.pad_mask_false.{level}"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["img_h112_w176", "img_h80_w112"])
def test_corrected_masks_are_the_released_ones_where_those_are_right(detector, name):
    """Padding on one side only; and but for recovery, which masks too much."""
    model, values, inputs = detector
    corrected = with_masks(model, "corrected")
    blocks = states_of_blocks(corrected, inputs[name], in_windows=(1, 2))[1]
    for index in (1, 2, 4):
        expected = values[f"inter.{name}.pad_mask_true.stage3_block{index:02}"]
        assert (blocks[index] - expected).abs().max() <= TOLERANCE
    assert (blocks[5] - values[f"inter.{name}.pad_mask_true.stage3_block05"]).abs().max() > 0.01
    block = corrected.swin.encoder.layers[2].blocks[5]
    with torch.no_grad():
        assert (block(blocks[0], blocks[4]) - blocks[5]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["img_h224_w112", "img_h160_w200"])
def test_corrected_masks_differ_where_the_released_ones_are_wrong(detector, name):
    model, values, inputs = detector
    with torch.no_grad():
        maps = with_masks(model, "corrected")(inputs[name]).feature_maps
    assert (maps[2] - values[f"feat.{name}.pad_mask_true.2"]).abs().max() > 0.01


# windows


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (3, 9)])
def test_windows_are_cut_and_joined(size):
    height, width = size
    states = torch.randn(2, height * width, 3)
    padded = torch.zeros(2, -(-height // 4) * 4, -(-width // 3) * 3, 3)
    padded[:, :height, :width] = states.unflatten(1, size)
    expected = [
        padded[image, row : row + 4, column : column + 3].flatten(0, 1)
        for image in range(2)
        for row in range(0, padded.shape[1], 4)
        for column in range(0, padded.shape[2], 3)
    ]
    windows = partition(states, size, (4, 3))
    assert torch.equal(windows, torch.stack(expected))
    assert torch.equal(join(windows, size, (4, 3)), states)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("size", "span", "before"), [(14, 10, 1), (13, 14, 3), (5, 9, 1), (30, 21, 7), (16, 7, 0)])
def test_windows_read_what_lies_around_them(size, span, before, moved):
    axis = Axis(size, -(-size // 7), 7, before, span, moved)
    other = Axis(9, 2, 7, 0, 7, moved)
    windows = key_windows(axis, other, torch.device("cpu"))
    read = windows.gather(torch.arange(size * 9.0)[None, :, None])[..., 0]
    mask = torch.zeros_like(read) if windows.outside is None else windows.mask(1, torch.float32)[:, 0, 0]
    for row, column in itertools.product(range(axis.count), range(2)):
        window = row * 2 + column
        sides = [(7 * row - before, span, size), (7 * column, 7, 9)]
        if moved:
            sides = [(min(max(start, 0), max(end - length, 0)), length, end) for start, length, end in sides]
        rows, columns = (range(max(start, 0), min(start + length, end)) for start, length, end in sides)
        expected = {y * 9 + x for y in rows for x in columns}
        kept = read[window][mask[window] == 0]
        assert set(kept.int().tolist()) == expected
        assert len(kept) == len(expected)


def test_large_maps_read_their_surroundings_only():
    """13 windows in a row: what changes in the seventh reaches one more by generation, and four more by recovery."""
    torch.manual_seed(0)
    config = SwinConfig(**{**TINY, "depths": UNIT, "window_size": 2})
    config = ta.accelerate_config(config, {**RECOVER, "token_grid": 1, "layer_scale_init_value": 1.0})
    stage = TokAccelSTViTSwinModel(config).eval().encoder.layers[2]
    # Without the layer that all semantic tokens pass together.
    stage.blocks[4].forward = lambda tokens, **kwargs: tokens
    states = torch.randn(1, 2 * 26, 32)
    changed = states.unflatten(1, (2, 26)).clone()
    changed[:, :, 12:14] += 1
    with torch.no_grad():
        before, after = (stage(s, (2, 26), True, True)[1] for s in (states, changed.flatten(1, 2)))
    seen = (before - after).abs().amax((0, 1, 2)) > 0
    assert seen.tolist() == [False] * 2 + [True] * 22 + [False] * 2


# Swin's own blocks


@pytest.fixture(scope="module")
def swin():
    """A model of Transformers, and its blocks as ours."""
    torch.manual_seed(0)
    layer = SwinLayer(SwinConfig(**TINY), 16, (8, 8), 2, 0.0, 2).eval()
    torch.nn.init.normal_(layer.attention.relative_position_bias.relative_position_bias_table)
    return layer


def run_layer(layer, size, always_partition=False):
    states = torch.randn(2, size[0] * size[1], 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return layer(states, size, always_partition=always_partition)[0]


def ours(layer):
    layer = copy.deepcopy(layer)
    become(layer, WindowLayer)
    return layer


@pytest.mark.parametrize(("size", "always"), [((8, 8), False), ((9, 6), False), ((4, 7), False), ((3, 9), True)])
def test_blocks_compute_what_swin_does(swin, size, always):
    expected = run_layer(copy.deepcopy(swin), size, always)
    assert torch.equal(run_layer(ours(swin), size, always), expected)


def test_blocks_remember_nothing(swin):
    """Swin's shrink windows for ever once they saw a small map."""
    block = ours(swin)
    first = run_layer(block, (8, 8))
    run_layer(block, (3, 3))
    assert torch.equal(run_layer(block, (8, 8)), first)
    native = copy.deepcopy(swin)
    run_layer(native, (4, 4))
    assert not torch.allclose(run_layer(native, (8, 8)), first)


@pytest.mark.parametrize("size", [(3, 3), (3, 8)])
def test_small_maps_use_part_of_the_biases(swin, size):
    """As a Swin whose windows are that small, with the middle of the table; that with larger windows fails there."""
    with pytest.raises(RuntimeError):
        run_layer(copy.deepcopy(swin), size)
    small = SwinLayer(SwinConfig(**{**TINY, "window_size": 3}), 16, (8, 8), 2, 0.0, 0).eval()
    name = "attention.relative_position_bias.relative_position_bias_table"
    state = swin.state_dict()
    state[name] = state[name].unflatten(0, (7, 7))[1:-1, 1:-1].flatten(0, 1)
    small.load_state_dict(state)
    assert torch.allclose(run_layer(ours(swin), size), run_layer(small, size), atol=1e-6)


# the stage


def accelerated(accel, cls=TokAccelSTViTSwinForImageClassification, **changes):
    torch.manual_seed(0)
    return cls(ta.accelerate_config(SwinConfig(**{**TINY, **changes}), accel)).eval()


@pytest.mark.parametrize(("accel", "shifts"), [(PLAIN, [0, 2]), (RECOVER, [0]), (CLASSIFICATION, [0])])
def test_layers_of_the_stage(accel, shifts):
    model = accelerated(accel, depths=UNIT if "recover" in accel else TINY["depths"])
    stage = model.swin.encoder.layers[2]
    assert [block.shift_size for block in stage.blocks if isinstance(block, WindowLayer)] == shifts
    assert all(isinstance(block, SemanticLayer) for block in stage.blocks[len(shifts) :])
    assert [block.shift_size for block in model.swin.encoder.layers[3].blocks] == [0, 2]


@pytest.mark.parametrize(("depth", "base"), [(18, 10), (6, 3), (7, 3), (4, 2)])
def test_base_layers_follow_from_the_depth(depth, base):
    """Where the published FLOPs fit."""
    if base + 2 >= depth:
        with pytest.raises(ValueError, match="base_layers"):
            ta.accelerate_config(SwinConfig(depths=[2, 2, depth, 2]), PLAIN)
        return
    config = ta.accelerate_config(SwinConfig(depths=[2, 2, depth, 2]), PLAIN)
    assert config.accel["base_layers"] == base


@pytest.mark.parametrize("side", [4, 3, 2])
def test_maps_after_dropping_are_those_of_semantic_tokens(side):
    """14 x 14 image tokens in four windows, and 17 x 12 in six."""
    model = accelerated({**PLAIN, "token_grid": side}, TokAccelSTViTSwinModel, window_size=7, image_size=112)
    for size, windows in (((112, 112), (2, 2)), ((130, 96), (3, 2))):
        with torch.no_grad():
            output = model(torch.randn(1, 3, *size), output_hidden_states=True)
        rows, columns = (-(-count * side // 2) for count in windows)
        assert [tuple(states.shape[-2:]) for states in output.reshaped_hidden_states[3:]] == [(rows, columns)] * 2
        assert output.last_hidden_state.shape == (1, rows * columns, 64)


def test_attentions_are_those_of_the_last_block_of_each_stage():
    model = accelerated(RECOVER, depths=UNIT)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(torch.randn(2, 3, 64, 64), output_attentions=True).attentions
    # Recovery: 64 image tokens read the 16 semantic ones.
    assert [tuple(a.shape[1:]) for a in attentions] == [(1, 16, 16), (2, 16, 16), (2, 64, 16), (4, 16, 16)]


@pytest.mark.slow
def test_compiles_again_for_another_size():
    """With sizes as constants: as symbols they grow through windows and padding until PyTorch takes minutes."""
    model = accelerated(PLAIN)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for size in ((64, 64), (80, 96), (60, 50)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert torch.allclose(compiled(images).logits, model(images).logits, atol=1e-5)


def test_maps_of_four_windows_only_for_the_classification_formulation():
    model = accelerated(CLASSIFICATION, depths=UNIT)
    message = r"9 x 8 tokens in the third stage .*8 x 8 tokens.*'detection'"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 72, 64))


def test_maps_too_small_for_the_semantic_tokens_of_a_window():
    model = accelerated({**PLAIN, "token_grid": 3})
    with pytest.raises(ValueError, match=r"token_grid=\(3, 3\) does not fit.*fewer semantic tokens than the 2 x 2"):
        model(torch.randn(1, 3, 16, 16))


def test_relative_positions_have_an_end():
    model = accelerated({**PLAIN, "relative_position_bias": True})
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 64)).logits.shape == (1, 5)
    with pytest.raises(ValueError, match=r"4 x 6 semantic tokens .*positions for 4 x 4.*image_size=64"):
        model(torch.randn(1, 3, 64, 72))


# heads for dense prediction


def test_a_backbone_needs_image_tokens():
    config = ta.accelerate_config(SwinConfig(**TINY), PLAIN)
    with pytest.raises(ValueError, match=r"recover=False is not valid for a Backbone.*'recover': True"):
        TokAccelSTViTSwinBackbone(config)


def backbone_config():
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return ta.accelerate_config(SwinConfig(**{**TINY, "depths": UNIT, "patch_size": 4}, out_features=stages), RECOVER)


def upernet():
    sizes = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_in_channels": 32, "auxiliary_channels": 8}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone_config(), num_labels=5, **sizes))


def mask2former():
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16}
    config = Mask2FormerConfig(backbone_config=backbone_config(), num_queries=5, **sizes, **layers)
    return Mask2FormerForUniversalSegmentation(config)


@pytest.mark.parametrize("build", [upernet, mask2former])
def test_heads_run_on_images_of_any_size_and_load(build, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    backbone = next(part for part in model.modules() if isinstance(part, TokAccelSTViTSwinBackbone))
    images = torch.randn(1, 3, 140, 202)
    with torch.no_grad():
        maps = backbone(images).feature_maps
    # Sides are rounded up wherever they are divided.
    assert [tuple(states.shape[1:]) for states in maps] == [(8, 35, 51), (16, 18, 26), (32, 9, 13), (64, 5, 7)]
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.backbone_config.accel == backbone.config.accel
    with torch.no_grad():
        first, second = (flatten(module(images).to_tuple()) for module in (model, loaded.eval()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))
