import pytest
import torch
from adaptive_family import AdaptiveInFull
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    CHMv2Config,
    CHMv2ForDepthEstimation,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models import dinov3_vit
from hf_tokaccel.models.dinov3_vit import TokAccelDINOv3ViTBackbone

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_register_tokens": 3,
    "initializer_range": 0.2,
}


class DINOv3ViTTester(FamilyTester):
    legacy_key = "layer.0.attention.q_proj.weight"
    new_key = "model.layer.0.attention.q_proj.weight"

    def config(self):
        return DINOv3ViTConfig(**TINY, out_indices=[1, 2, 4])

    @pytest.fixture
    def rotated(self, monkeypatch):
        """cos and sin of the tokens, then of the clusters."""
        seen, original = [], dinov3_vit.rotary
        monkeypatch.setattr(dinov3_vit, "rotary", lambda *a: seen.append(original(*a)) or seen[-1])
        return seen


class TestDINOv3ViTModel(DINOv3ViTTester):
    secondary = True
    native, auto = DINOv3ViTModel, AutoModel

    def test_class_token_and_registers_bypass_clustering(self, fast):
        with ta.observe_clusters() as seen:
            states = fast(self.images(), output_hidden_states=True).hidden_states[ACCEL["cluster_after"]]
        assert torch.equal(seen[0].keys, states[:, 4:])


class TestDINOv3ViTBackbone(DINOv3ViTTester):
    native, auto = DINOv3ViTBackbone, TokAccelDINOv3ViTBackbone
    image_size, grid = (32, 48), (8, 12)

    def test_clusters_rotate_as_their_centres(self, model, rotated):
        """Pooled 2 x 2 patches are patches of twice the side, so their rotary embedding is that of a 4 x 6 grid."""
        fast = ta.accelerate(model, {**ACCEL, "cluster_grid": [4, 6], "iterations": 0})
        self.run(fast, self.images())
        tokens, clusters = rotated
        expected = model.rope_embeddings(self.images(size=(16, 24)))
        for actual, native, pooled in zip(tokens, model.rope_embeddings(self.images()), clusters, strict=True):
            assert torch.equal(actual, native)
            assert pooled.shape == (2, 1, 24, 16)
        for actual, native in zip(clusters, expected, strict=True):
            assert torch.allclose(actual, native.expand_as(actual), atol=1e-5)

    def test_training_moves_clusters_along_with_their_patches(self, rotated):
        moved = {"pos_embed_shift": 0.5, "pos_embed_jitter": 1.5, "pos_embed_rescale": 2.0}
        model = DINOv3ViTBackbone(DINOv3ViTConfig(**TINY, **moved)).eval()
        setting = {**ACCEL, "cluster_grid": list(self.grid), "iterations": 0}
        fast = ta.accelerate(model, setting, self.image_size).train()
        torch.manual_seed(0)
        fast(self.images())
        torch.manual_seed(0)
        native = type(model.rope_embeddings)(model.config).train()(self.images())
        tokens, clusters = rotated
        still = model.rope_embeddings(self.images())
        for actual, expected, pooled, eval_time in zip(tokens, native, clusters, still, strict=True):
            assert torch.equal(actual, expected)
            assert torch.equal(pooled[:, 0], expected.expand(2, -1, -1))
            assert (actual - eval_time).abs().max() > 0.1


class TestDINOv3ViTAdaptive(AdaptiveInFull, DINOv3ViTTester):
    native, auto = DINOv3ViTBackbone, TokAccelDINOv3ViTBackbone
    image_size, grid = (32, 48), (8, 12)

    def test_clusters_rotate_as_the_mean_centre_of_their_tokens(self, model, fast, rotated):
        with ta.observe_clusters() as seen:
            self.run(fast, self.images())
        rows, columns = ((2 * torch.arange(side) + 1) / side - 1 for side in self.grid)
        centres = torch.cartesian_prod(rows, columns).double()
        for step, (actual, observed) in enumerate(zip(rotated[1:], seen, strict=True)):
            members = torch.nn.functional.one_hot(observed.clusters.regions.rows).double().transpose(1, 2)
            assert members.shape == (2, [48, 24][step], 96)
            means = members @ centres / members.sum(-1, keepdim=True)
            angles = 2 * torch.pi * (means[..., None] * model.rope_embeddings.inv_freq).flatten(2).tile(2)
            for part, expected in zip(actual, (angles.cos(), angles.sin()), strict=True):
                torch.testing.assert_close(part[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy_keys", "new_keys"])
def test_canopy_heights_are_accelerated_through_the_backbone(tmp_path, legacy):
    torch.manual_seed(0)
    backbone = DINOv3ViTConfig(
        **{**TINY, "out_indices": [1, 2, 3, 4], "return_class_token": True, "reshape_hidden_states": True}
    )
    config = CHMv2Config(
        backbone_config=backbone,
        patch_size=4,
        post_process_channels=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        number_output_channels=8,
    )
    head = CHMv2ForDepthEstimation(config).eval()
    images = FamilyTester().images()
    fast, native = ta.accelerate(head, ACCEL), head(images).predicted_depth
    assert type(fast.backbone) is TokAccelDINOv3ViTBackbone
    depth = fast(images).predicted_depth
    assert depth.shape == native.shape
    assert (depth - native).abs().max() > 1e-3 * native.abs().max()

    head.save_pretrained(tmp_path, save_original_format=legacy)
    loaded, info = AutoModelForDepthEstimation.from_pretrained(
        tmp_path, config=ta.accelerate_config(CHMv2Config.from_pretrained(tmp_path), ACCEL), output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded.eval()(images).predicted_depth, depth)
