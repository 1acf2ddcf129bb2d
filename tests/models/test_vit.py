import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)
from transformers.utils import output_capturing

import hf_tokaccel as ta
from hf_tokaccel.models.vit import TokAccelViTBackbone, TokAccelViTConfig


class ViTTester(FamilyTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    other_size = None

    def config(self):
        return ViTConfig(
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


class TestViTModel(ViTTester):
    native, auto = ViTModel, AutoModel
    strict_export = True


class TestViTForImageClassification(ViTTester):
    secondary = True
    native, auto = ViTForImageClassification, AutoModelForImageClassification

    def test_nothing_is_reconstructed_for_the_class_token(self, fast, monkeypatch):
        monkeypatch.setattr("hf_tokaccel.hosts.clusters.reconstruct_tokens", None)
        self.run(fast, self.images())


class TestViTForMaskedImageModeling(ViTTester):
    secondary = True
    native, auto = ViTForMaskedImageModeling, AutoModelForMaskedImageModeling

    def test_loss_with_masked_positions(self, fast):
        masked = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) > 0.5
        loss = fast(self.images(), bool_masked_pos=masked).loss
        assert loss.isfinite()


class TestViTAdaptive(Adaptive, ViTTester):
    native, auto = ViTModel, AutoModel


class TestViTBackbone:
    """Transformers has no native counterpart, so `ViTModel` is the control."""

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        torch.manual_seed(0)
        return ViTModel(ViTTester().config(), add_pooling_layer=False).eval()

    @pytest.mark.parametrize("accel", [None, ACCEL], ids=["off", "on"])
    def test_feature_maps_are_the_hidden_states(self, model, tmp_path, accel):
        model.save_pretrained(tmp_path)
        config = TokAccelViTConfig.from_pretrained(tmp_path, accel=accel, out_indices=[1, 4])
        backbone, info = TokAccelViTBackbone.from_pretrained(tmp_path, config=config, output_loading_info=True)
        assert not info["missing_keys"]
        images = ViTTester().images()
        with torch.no_grad():
            maps = backbone.eval()(images).feature_maps
            states = ta.accelerate(model, accel)(images, output_hidden_states=True).hidden_states
        assert [m.shape for m in maps] == [(2, 32, 8, 8)] * 2
        for index, feature_map in zip((1, 4), maps, strict=True):
            expected = model.layernorm(states[index])[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
            assert torch.allclose(feature_map, expected, atol=1e-5)

    def test_auto_backbone_other_sizes_and_head_checkpoint(self, tmp_path):
        ViTForImageClassification(ViTTester().config()).save_pretrained(tmp_path)
        config = TokAccelViTConfig.from_pretrained(tmp_path, accel=ACCEL, out_features=["stage2", "stage4"])
        backbone = AutoBackbone.from_config(config)
        assert type(backbone) is TokAccelViTBackbone
        _, info = TokAccelViTBackbone.from_pretrained(tmp_path, config=config, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        output = backbone(ViTTester().images(size=(32, 48)), output_hidden_states=True)
        assert [m.shape for m in output.feature_maps] == [(2, 32, 8, 12)] * 2
        assert [h.shape for h in output.hidden_states] == [(2, 97, 32)] * 5

    def test_there_is_no_native_form(self):
        backbone = TokAccelViTBackbone(TokAccelViTConfig(**ViTTester().config().to_dict()))
        with pytest.raises(ValueError, match="no counterpart in Transformers"):
            ta.to_native(backbone)


def test_attention_mask_is_refused_while_accelerated():
    model = ViTModel(ViTTester().config()).eval()
    images, mask = ViTTester().images(), torch.ones(2, 65)
    model(images, attention_mask=mask)
    with pytest.raises(ValueError, match="attention_mask is not valid while acceleration is on"):
        ta.accelerate(model, ACCEL)(images, attention_mask=mask)
    ta.accelerate(model, None)(images, attention_mask=mask)


@pytest.mark.skipif(not hasattr(output_capturing, "selected_hidden_states"), reason="new in transformers 5.23")
@pytest.mark.parametrize("selection", [True, 2, -1, [1, -1], [0, 99]])
def test_output_hidden_states_takes_every_native_form(selection):
    model = ViTModel(ViTTester().config()).eval()
    expected = model(ViTTester().images(), output_hidden_states=selection).hidden_states
    actual = ta.accelerate(model, ACCEL)(ViTTester().images(), output_hidden_states=selection).hidden_states
    shapes = [[state if state is None else state.shape for state in states] for states in (actual, expected)]
    assert shapes[0] == shapes[1]


def test_cluster_grid_is_checked_against_a_fixed_image_size_at_once():
    with pytest.raises(ValueError, match="at most as many clusters as tokens"):
        ta.accelerate_config(ViTTester().config(), {**ACCEL, "cluster_grid": [9, 9]})
    ta.accelerate_config(ViTTester().config(), {**ACCEL, "cluster_grid": [9, 9]}, image_size=64)
