import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
)

import hf_tokaccel as ta
from hf_tokaccel.hosts import clusters
from hf_tokaccel.models.dinov2 import TokAccelDinov2Backbone


class Dinov2Tester(FamilyTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "encoder.layer.0.attention.q_proj.weight"

    def config(self):
        return Dinov2Config(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            initializer_range=0.2,
            num_labels=5,
            out_indices=[1, 2, 4],
        )


class TestDinov2Model(Dinov2Tester):
    secondary = True
    native, auto = Dinov2Model, AutoModel


class TestDinov2ForImageClassification(Dinov2Tester):
    secondary = True
    native, auto = Dinov2ForImageClassification, AutoModelForImageClassification


class TestDinov2Backbone(Dinov2Tester):
    native, auto = Dinov2Backbone, TokAccelDinov2Backbone
    image_size, grid = (32, 48), (8, 12)

    def test_only_the_maps_that_are_read_are_reconstructed(self, fast, monkeypatch):
        calls = []
        original = clusters.reconstruct_tokens
        monkeypatch.setattr(
            "hf_tokaccel.hosts.clusters.reconstruct_tokens", lambda *a: calls.append(1) or original(*a)
        )
        self.run(fast, self.images())
        assert len(calls) == 2  # stages 2 and 4; stage 1 comes before the clustering
        calls.clear()
        self.run(fast, self.images(), output_hidden_states=True)
        assert len(calls) == 3

    def test_one_plan_serves_all(self, fast, monkeypatch):
        calls = []
        original = clusters.plan_reconstruction
        monkeypatch.setattr(
            "hf_tokaccel.hosts.clusters.plan_reconstruction", lambda *a, **k: calls.append(1) or original(*a, **k)
        )
        self.run(fast, self.images(), output_hidden_states=True)
        assert len(calls) == 1


class TestDinov2Adaptive(Adaptive, Dinov2Tester):
    native, auto = Dinov2Backbone, TokAccelDinov2Backbone
    image_size, grid = (32, 48), (8, 12)


def test_attention_mask_is_refused_while_accelerated():
    model = ta.accelerate(Dinov2Model(Dinov2Tester().config()), ACCEL)
    with pytest.raises(ValueError, match="attention_mask"):
        model(Dinov2Tester().images(), attention_mask=torch.ones(2, 65))
