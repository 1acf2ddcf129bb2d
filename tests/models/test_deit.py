import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)

import hf_tokaccel as ta


class DeiTTester(FamilyTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    other_size = None

    def config(self):
        return DeiTConfig(
            image_size=32,
            patch_size=4,
            encoder_stride=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
            num_labels=5,
        )

    def build(self):
        # Transformers starts with zero tokens and positions, which would make both prefix tokens the same.
        model = super().build()
        for name, parameter in model.named_parameters():
            if "token" in name or "position" in name:
                torch.nn.init.normal_(parameter)
        return model


class TestDeiTModel(DeiTTester):
    secondary = True
    native, auto = DeiTModel, AutoModel

    def test_both_prefix_tokens_bypass_clustering(self, fast):
        with ta.observe_clusters() as seen:
            states = fast(self.images(), output_hidden_states=True).hidden_states[ACCEL["cluster_after"]]
        assert torch.equal(seen[0].keys, states[:, 2:])


class TestDeiTForImageClassification(DeiTTester):
    secondary = True
    native, auto = DeiTForImageClassification, AutoModelForImageClassification


class TestDeiTForImageClassificationWithTeacher(DeiTTester):
    secondary = True
    native, auto = DeiTForImageClassificationWithTeacher, AutoModelForImageClassification

    def test_nothing_is_reconstructed_for_class_and_distillation_token(self, fast, monkeypatch):
        monkeypatch.setattr("hf_tokaccel.hosts.clusters.reconstruct_tokens", None)
        self.run(fast, self.images())


class TestDeiTForMaskedImageModeling(DeiTTester):
    secondary = True
    native, auto = DeiTForMaskedImageModeling, AutoModelForMaskedImageModeling

    def test_loss_with_masked_positions(self, fast):
        masked = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) > 0.5
        assert fast(self.images(), bool_masked_pos=masked).loss.isfinite()


class TestDeiTAdaptive(Adaptive, DeiTTester):
    native, auto = DeiTModel, AutoModel


@pytest.mark.parametrize("cls", [DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
def test_auto_class_loads_the_classifier_that_was_saved(cls, tmp_path):
    cls(DeiTTester().config()).save_pretrained(tmp_path)
    config = ta.accelerate_config(DeiTConfig.from_pretrained(tmp_path), ACCEL)
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert type(model).__name__ == f"TokAccel{cls.__name__}"
    assert not info["missing_keys"]
    assert type(ta.to_native(model)) is cls
