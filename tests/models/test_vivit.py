import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models.vivit import TokAccelVivitModel


class VivitTester(FamilyTester):
    image_size, grid = (32, 48), (8, 12)
    slices = 3
    other_size = None
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"

    def config(self):
        return VivitConfig(
            image_size=[32, 48],
            tubelet_size=[2, 4, 4],
            num_frames=6,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
            num_labels=5,
        )

    def images(self, batch=2, size=None, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 6, 3, *(size or self.image_size), generator=generator)


class TestVivitModel(VivitTester):
    secondary = True
    native, auto = VivitModel, AutoModel

    def test_class_token_is_never_clustered(self, fast):
        with ta.observe_clusters() as seen:
            states = fast(self.images(), output_hidden_states=True).hidden_states
        tokens = states[1][:, 1:].unflatten(1, (3, 96)).flatten(0, 1)  # what entered the first block on clusters
        assert torch.equal(seen[0].keys, tokens)


class TestVivitForVideoClassification(VivitTester):
    secondary = True
    native, auto = VivitForVideoClassification, AutoModelForVideoClassification

    def test_nothing_is_reconstructed_for_the_class_token(self, fast, monkeypatch):
        monkeypatch.setattr("hf_tokaccel.hosts.clusters.reconstruct_tokens", None)
        self.run(fast, self.images())


class TestVivitAdaptive(Adaptive, VivitTester):
    native, auto = VivitModel, AutoModel


def test_cluster_grid_is_checked_against_one_slice_at_once():
    assert TokAccelVivitModel.config_class().patch_size == (16, 16)
    with pytest.raises(ValueError, match="at most as many clusters as tokens: the image has 8 x 12"):
        ta.accelerate_config(VivitTester().config(), {**ACCEL, "cluster_grid": [12, 12]})
