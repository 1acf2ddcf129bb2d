import json
from pathlib import Path

import pytest
import torch
from family import FamilyTester
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
)

import hf_tokaccel as ta
from hf_tokaccel.hosts.stages import relative_position_index, resize_bias_table
from hf_tokaccel.models.swin import TokAccelSwinBackbone

GOLDEN = Path(__file__).parents[1] / "goldens" / "expedit_swin_w6c4_loc5.safetensors"
# The second stage is clustered before its second block, which shifts, and holds a window more than its map needs.
TINY = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 4, 1],
    "num_heads": [2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.2,
}
ACCEL = {"cluster_after": 2, "cluster_grid": [2, 2], "window": 3, "neighbors": 2, "inverse_temperature": "auto"}


def awaken(model):
    """Position biases start at zero, which would hide them."""
    for name, parameter in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(parameter)
    return model


class StagedTester(FamilyTester):
    """Clusters of 2 x 2 in windows of 4 x 4; maps of odd sides, of which padding makes whole windows."""

    takes_adaptive = False
    image_size, grid, other_size = (75, 90), (4, 4), (66, 99)
    depth = 6
    accel = ACCEL
    unchanged_states = 2
    windows = 2 * 3 * 3

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model, fast):
        """Those of the last block of each stage; of all windows of 2 images."""
        fast = ta.accelerate(fast, self.accel)
        fast.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = fast(self.images(), output_attentions=True).attentions
        assert len(attentions) == 3
        assert attentions[1].shape == (self.windows, 2, 4, 4)
        assert [a.shape[-1] for a in attentions] == [16, 4, 16]
        native = ta.to_native(fast)
        with torch.no_grad():
            attentions = native(self.images(), output_attentions=True).attentions
        assert [a.shape[-1] for a in attentions] == [16, 16, 16]

    @pytest.mark.parametrize("grid", [[5, 5], [4, 4], [2, 3]])
    def test_more_clusters_than_tokens_are_refused(self, model, grid):
        with pytest.raises(ValueError, match=r"cluster_grid=\(.*square smaller than the 4 x 4 tokens.*for example"):
            ta.accelerate(model, {**self.accel, "cluster_grid": grid})
        with pytest.raises(ValueError, match="cluster_grid"):
            ta.accelerate_config(model.config, {**self.accel, "cluster_grid": grid})

    def test_image_that_is_no_multiple_of_the_patch_is_refused(self, model, fast):
        """It is not: the host pads images, maps and windows."""
        for size in ((75, 89), (99, 66)):
            images = self.images(size=size)
            assert [a.shape for a in self.run(fast, images)] == [b.shape for b in self.run(model, images)]

    def test_the_span_ends_with_its_stage(self, model, fast):
        assert fast.config.accel["reconstruct_after"] == 5
        assert ta.accelerate_config(model.config, {**self.accel, "cluster_after": 5}).accel["reconstruct_after"] == 6
        message = (
            r"reconstruct_after=6 .*between 3 and 5, where stage 2 of depths \[1, 4, 1\] ends.*reconstruct_after=5"
        )
        with pytest.raises(ValueError, match=message):
            ta.accelerate(model, {**self.accel, "reconstruct_after": 6})

    def test_mask_shift(self, model):
        """Seen where c // 2 is not W // 2."""
        assert ta.accelerate(model, self.accel).config.accel["mask_shift"] == "corrected"
        corrected, released = (
            self.run(ta.accelerate(model, {**self.accel, "mask_shift": shift}), self.images())
            for shift in ("corrected", "released")
        )
        self.assert_differs(released, corrected, 1e-5)
        with pytest.raises(ValueError, match=r"mask_shift='wrong' .*mask_shift='corrected'"):
            ta.accelerate(model, {**self.accel, "mask_shift": "wrong"})


class SwinTester(StagedTester):
    legacy_key = "attention.self.query"
    new_key = "attention.q_proj"

    def config(self):
        return SwinConfig(**TINY)

    def build(self):
        return awaken(super().build())


class TestSwinModel(SwinTester):
    secondary = True
    native, auto = SwinModel, AutoModel

    def test_the_host_is_changed_inside_the_span_only(self, model, fast):
        blocks = [list(stage.blocks.children()) for stage in fast.encoder.layers]
        assert [[block.window_size for block in stage] for stage in blocks] == [[4], [4, 2, 2, 2], [4]]
        assert [[block.shift_size for block in stage] for stage in blocks] == [[0], [0, 1, 0, 1], [0]]
        for plain in (model, ta.accelerate(fast, None), ta.to_native(fast)):
            assert [block.window_size for block in plain.encoder.layers[1].blocks] == [4] * 4
            assert not any(type(part).__module__.startswith("hf_tokaccel.hosts.stages") for part in plain.modules())
        early = ta.accelerate(fast, {**ACCEL, "reconstruct_after": 4}).encoder.layers[1].blocks
        assert [block.window_size for block in early.children()] == [4, 2, 2, 4]

    def test_a_map_of_one_window_is_still_clustered_and_shifted(self):
        """Natively the model then stops to shift for ever; only its Backbone does not."""
        torch.manual_seed(0)
        model = SwinModel(SwinConfig(**{**TINY, "depths": [1, 4], "num_heads": [2, 2]})).eval()
        fast = ta.accelerate(model, ACCEL)
        before = self.run(fast, self.images())
        with ta.observe_clusters() as seen:
            self.run(fast, self.images(size=(32, 32)))
        assert seen[0].keys.shape[:2] == (2, 16)
        assert [block.shift_size for block in fast.encoder.layers[1].blocks.children()] == [0, 1, 0, 1]
        assert all(torch.equal(a, b) for a, b in zip(self.run(fast, self.images()), before, strict=True))


class TestSwinForImageClassification(SwinTester):
    secondary = True
    native, auto = SwinForImageClassification, AutoModelForImageClassification


class TestSwinForMaskedImageModeling(SwinTester):
    """Square images only, as its host."""

    secondary = True
    native, auto = SwinForMaskedImageModeling, AutoModelForMaskedImageModeling
    image_size = other_size = (64, 64)
    windows = 2 * 2 * 2
    grid = (4, 4)

    def config(self):
        return SwinConfig(**{**TINY, "encoder_stride": 16})

    def test_masked_patches(self, model, fast):
        mask = torch.rand(2, 256, generator=torch.Generator().manual_seed(0)) < 0.5
        expected, actual = (self.run(module, self.images(), bool_masked_pos=mask) for module in (model, fast))
        assert [a.shape for a in actual] == [b.shape for b in expected]
        self.assert_differs(actual, expected)
        assert expected[0].shape == ()

    def test_image_that_is_no_multiple_of_the_patch_is_refused(self, model, fast):
        images = self.images(size=(62, 62))
        assert [a.shape for a in self.run(fast, images)] == [b.shape for b in self.run(model, images)]


class TestSwinBackbone(SwinTester):
    native, auto = SwinBackbone, TokAccelSwinBackbone
    strict_export = True

    def config(self):
        return SwinConfig(**TINY, out_features=["stem", "stage1", "stage2", "stage3"])


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        settings = json.loads(file.metadata()["config"])
    return load_file(GOLDEN), settings


def golden_model(tensors, settings):
    """The reference's weights under the names of Transformers."""
    config = SwinConfig(
        embed_dim=settings["embed_dim"],
        depths=settings["depths"],
        num_heads=settings["heads"],
        window_size=settings["window"],
        mlp_ratio=settings["mlp_ratio"],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    renames = {
        "model.layers.": "swin.encoder.layers.",
        "model.patch_embed.proj.": "swin.embeddings.patch_embeddings.projection.",
        "model.patch_embed.norm.": "swin.embeddings.norm.",
        "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
        "attn.proj": "attention.o_proj",
        "norm1.": "layernorm_before.",
        "norm2.": "layernorm_after.",
    }
    weights = {}
    for name, value in tensors.items():
        if not name.startswith("model."):
            continue
        if name.startswith("model.norm"):
            weights[f"hidden_states_norms.stage{int(name[10]) + 1}{name[11:]}"] = value
            continue
        for old, new in renames.items():
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                weights[name.replace("attn.qkv", f"attention.{part}_proj")] = chunk
        else:
            weights[name] = value
    model = SwinBackbone(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"swin.layernorm.weight", "swin.layernorm.bias"}  # which the backbone does not read
    return model


def golden_setting(settings, **changes):
    return {
        "cluster_after": settings["clustering_location"],
        "cluster_grid": int(settings["clusters_per_window"] ** 0.5),
        "inverse_temperature": settings["temperature"],
        "window": settings["cluster_window"],
        "iterations": settings["n_iters"],
        "neighbors": settings["k"],
        **changes,
    }


def assert_near(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", ["baseline", "released", "fixed_mask"])
def test_golden(golden, kind):
    tensors, settings = golden
    model = golden_model(tensors, settings)
    if kind != "baseline":
        shift = "released" if kind == "released" else "corrected"
        model = ta.accelerate(model, golden_setting(settings, mask_shift=shift))
    with torch.no_grad():
        maps = model(tensors["image"]).feature_maps
    for level, actual in zip((2, 3, 4, 5), maps, strict=True):
        assert_near(actual, tensors[f"{kind}/res{level}"])
    if kind == "fixed_mask":  # the two masks do act
        assert (maps[2] - tensors["released/res4"]).abs().max() > 1e-3 * maps[2].abs().max()


def test_golden_stage(golden):
    """What happens inside of the clustered stage, step by step."""
    tensors, settings = golden
    stage = {name.removeprefix("released/stage/"): value for name, value in tensors.items() if "/stage/" in name}
    model = ta.accelerate(golden_model(tensors, settings), golden_setting(settings, mask_shift="released"))
    ours = model.swin.encoder.layers[2]
    blocks = list(ours.blocks.children())
    outputs, inputs, ends = [], [], []
    ours.downsample.register_forward_pre_hook(lambda module, args: ends.append(args[0]))
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: inputs.append(args[:2]))
        block.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with torch.no_grad(), ta.observe_clusters() as seen:
        model(tensors["image"])
    assert_near(outputs[0], stage["before"])
    assert_near(inputs[1][0], stage["clustered_tokens"])
    assert tuple(inputs[1][1]) == tuple(stage["refined_hw"].tolist())
    for index, output in enumerate(outputs):
        assert_near(output, stage[f"block{index}_out"])
    assert_near(outputs[-1], stage["refined_tokens"])
    assert_near(ends[0], stage["reconstructed_tokens"])
    assert_near(seen[0].keys, stage["feat_before_pooling"])
    assert_near(seen[0].clusters.centroids, stage["feat_after_pooling"])
    assert torch.equal(seen[0].labels().flatten(1), stage["hard_labels"])
    height, width = stage["refined_hw"].tolist()
    mask = blocks[1].get_attn_mask(height, width, dtype=torch.float32, device="cpu")
    assert torch.equal(mask, stage["mask_clustered"])
    table = blocks[-1].attention.relative_position_bias.relative_position_bias_table
    assert_near(resize_bias_table(table, 4), stage["resized_bias_table"])
    assert table.shape == (121, 4)


def test_index_is_the_hosts(golden):
    model = golden_model(*golden)
    native = model.swin.encoder.layers[0].blocks[0].attention.relative_position_bias
    assert torch.equal(relative_position_index(6, torch.device("cpu")).flatten(), native.relative_position_index)


def test_mask_shift_is_refused_where_windows_do_not_shift():
    from transformers import ViTConfig

    with pytest.raises(ValueError, match=r"mask_shift='released' .*None for this model.*mask_shift=None"):
        ta.accelerate_config(ViTConfig(), {"cluster_after": 6, "cluster_grid": 7, "mask_shift": "released"})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traces():
    """Where sizes are tensors; what test_traces of each family, which is slow, caught here alone."""
    tester = TestSwinBackbone()
    torch.manual_seed(0)
    tester.test_traces(ta.accelerate(tester.build().eval(), tester.accel))


def test_setting_without_a_window_to_shrink():
    config = SwinConfig(**{**TINY, "window_size": 1})
    with pytest.raises(ValueError, match=r"cluster_after=2 .*stage 2 .*have one token each.*accel=None"):
        ta.accelerate_config(config, {"cluster_after": 2, "cluster_grid": 1})
