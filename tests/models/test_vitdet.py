import json
from pathlib import Path

import pytest
import torch
from family import FamilyTester
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, VitDetBackbone, VitDetConfig, VitDetModel

import hf_tokaccel as ta
from hf_tokaccel.models.vitdet import TokAccelVitDetBackbone

GOLDEN = Path(__file__).parents[1] / "goldens" / "expedit_sam_g16_w6c4_loc1.safetensors"
# Every kind of block on clusters: windowed, global, and with a convolution.
TINY = {
    "image_size": 32,
    "pretrain_image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "window_block_indices": [0, 2],
    "residual_block_indices": [1, 3],
    "window_size": 4,
    "use_relative_position_embeddings": True,
    "initializer_range": 0.2,
    "out_indices": [1, 2, 4],
}
ACCEL = {"cluster_after": 1, "cluster_grid": [2, 2], "window": 3, "neighbors": 2, "inverse_temperature": "auto"}


def awaken(model):
    """Norms that close the residual convolutions start at zero, which would hide those."""
    for name, parameter in model.named_parameters():
        if name.endswith("residual.norm3.weight"):
            torch.nn.init.constant_(parameter, 0.5)
    return model


class WindowTester(FamilyTester):
    """Clusters of 2 x 2 in windows of 4 x 4, on an image that needs padding."""

    takes_adaptive = False
    image_size, grid, other_size = (32, 40), (4, 4), (40, 28)
    accel = ACCEL
    legacy_key = new_key = "encoder.layer.0.attention.qkv.weight"  # never renamed

    def build(self):
        return awaken(super().build())

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model, fast):
        with torch.no_grad():
            expected = model(self.images(), output_attentions=True).attentions
            attentions = fast(self.images(), output_attentions=True).attentions
        assert [a.shape for a in attentions[:1]] == [a.shape for a in expected[:1]]
        # The image has 8 x 10 tokens, so 2 x 3 windows: 6 of 2 x 2 clusters for each of 2 images, or a map of 4 x 6.
        assert attentions[2].shape == (12, 2, 4, 4)
        assert attentions[1].shape == attentions[3].shape == (2, 2, 24, 24)

    @pytest.mark.parametrize("grid", [[5, 5], [4, 4], [2, 3]])
    def test_more_clusters_than_tokens_are_refused(self, model, grid):
        with pytest.raises(ValueError, match=r"cluster_grid=\(.*square smaller than the 4 x 4 tokens.*for example"):
            ta.accelerate(model, {**self.accel, "cluster_grid": grid})
        with pytest.raises(ValueError, match="cluster_grid"):
            ta.accelerate_config(model.config, {**self.accel, "cluster_grid": grid})


def test_windows_of_one_or_two_tokens_a_side():
    config = VitDetConfig(**{**TINY, "window_size": 1})
    with pytest.raises(ValueError, match=r"cluster_after=1 .*this model have one token each.*accel=None"):
        ta.accelerate_config(config, {**ACCEL, "cluster_grid": 1})
    config = VitDetConfig(**{**TINY, "window_size": 2})
    with pytest.raises(ValueError, match=r"smaller than the 2 x 2 tokens.*cluster_grid=\(1, 1\)"):
        ta.accelerate_config(config, ACCEL)
    assert ta.accelerate_config(config, {**ACCEL, "cluster_grid": 1}).accel["cluster_grid"] == [1, 1]


class VitDetTester(WindowTester):
    def config(self):
        return VitDetConfig(**TINY)


class TestVitDetModel(VitDetTester):
    secondary = True
    native, auto = VitDetModel, AutoModel

    def test_window_sizes_change_inside_the_span_of_the_accelerated_model_only(self, model):
        fast = ta.accelerate(model, {**ACCEL, "reconstruct_after": 2})
        assert [layer.window_size for layer in fast.encoder.layer] == [4, 0, 4, 0]
        fast = ta.accelerate(fast, ACCEL)
        assert [layer.window_size for layer in fast.encoder.layer] == [4, 0, 2, 0]
        for plain in (model, ta.accelerate(fast, None), ta.to_native(fast)):
            assert [layer.window_size for layer in plain.encoder.layer] == [4, 0, 4, 0]
            assert all("_tokaccel_changed" not in vars(part) for part in plain.modules())
        assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))

    def test_a_model_offloaded_to_disk_gets_the_windows_of_the_clusters(self, model, fast, tmp_path):
        model.save_pretrained(tmp_path)
        offloaded = VitDetModel.from_pretrained(
            tmp_path, device_map={"embeddings": "cpu", "encoder": "disk"}, offload_folder=tmp_path / "offload"
        )
        self.assert_close(self.run(ta.accelerate(offloaded, ACCEL), self.images()), self.run(fast, self.images()))


class TestVitDetBackbone(VitDetTester):
    """Its graphs are tested in ViTMatte."""

    secondary = True
    native, auto = VitDetBackbone, TokAccelVitDetBackbone


class TestVitDetWithoutWindows(FamilyTester):
    """Only global blocks: the whole map is clustered, to any grid."""

    takes_adaptive = False
    secondary = True
    native, auto = VitDetModel, AutoModel
    image_size, grid = (32, 48), (8, 12)
    accel = {**ACCEL, "cluster_grid": [4, 6]}
    legacy_key = new_key = "encoder.layer.0.attention.qkv.weight"

    def config(self):
        return VitDetConfig(**{**TINY, "window_block_indices": [], "window_size": 0})

    def build(self):
        return awaken(super().build())


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return load_file(GOLDEN), json.loads(file.metadata()["config"])


def golden_model(tensors, settings):
    """The blocks of SAM's encoder are ViTDet's."""
    count = settings["image"] // settings["patch"]
    config = VitDetConfig(
        image_size=settings["image"],
        pretrain_image_size=settings["image"],
        patch_size=settings["patch"],
        hidden_size=settings["dim"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["heads"],
        layer_norm_eps=settings["ln_eps"],
        window_size=settings["window"],
        window_block_indices=[i for i in range(settings["depth"]) if i not in settings["global_attn_indexes"]],
        use_relative_position_embeddings=True,
    )
    positions = tensors["model.pos_embed"].reshape(1, count**2, -1)
    weights = {"embeddings.position_embeddings": torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)}
    renames = {
        "blocks.": "encoder.layer.",
        ".attn.": ".attention.",
        "mlp.lin": "mlp.fc",
        "patch_embed.proj": "embeddings.projection",
    }
    for name, value in tensors.items():
        if name.startswith(("model.blocks.", "model.patch_embed.")):
            name = name.removeprefix("model.")
            for old, new in renames.items():
                name = name.replace(old, new)
            weights[name] = value
    model = VitDetModel(config).eval()
    model.load_state_dict(weights)
    return model


def neck(tensors, states):
    """SAM's: a 1 x 1 and a 3 x 3 convolution, each with a LayerNorm over channels."""

    def norm(x, index):
        weight, bias = (tensors[f"model.neck.{index}.{kind}"] for kind in ("weight", "bias"))
        x = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)

    states = norm(torch.nn.functional.conv2d(states, tensors["model.neck.0.weight"]), 1)
    return norm(torch.nn.functional.conv2d(states, tensors["model.neck.2.weight"], padding=1), 3)


def test_golden(golden):
    tensors, settings = golden
    model = golden_model(tensors, settings)
    fast = ta.accelerate(
        model,
        {
            "cluster_after": settings["clustering_location"],
            "cluster_grid": int(settings["num_cluster"] ** 0.5),
            "inverse_temperature": settings["temperature"],
            "window": settings["cluster_window"],
            "iterations": settings["n_iters"],
            "neighbors": settings["k"],
            "expansion": "soft",
            "normalization": "l2",
        },
    )
    blocks = []
    for layer in fast.encoder.layer.children():
        layer.register_forward_hook(lambda module, args, output: blocks.append(output[0].permute(0, 2, 3, 1)))
    with torch.no_grad():
        baseline = model(tensors["image"]).last_hidden_state
        with ta.observe_clusters() as seen:
            released = fast(tensors["image"]).last_hidden_state
    actual = {f"released/block{index}_out": block for index, block in enumerate(blocks)} | {
        "baseline/output": neck(tensors, baseline),
        "released/feat_after_pooling": seen[0].clusters.centroids,
        "released/reconstructed_grid": released.permute(0, 2, 3, 1),
        "released/output": neck(tensors, released),
    }
    assert len(blocks) == settings["depth"]
    for name, value in actual.items():
        expected = tensors[name]
        assert (value - expected).abs().max() <= 1e-5 * expected.abs().max(), name
