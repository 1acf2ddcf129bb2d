import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import hf_tokaccel as ta
from hf_tokaccel.models.dinov2_with_registers import TokAccelDinov2WithRegistersBackbone


class Dinov2WithRegistersTester(FamilyTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "encoder.layer.0.attention.q_proj.weight"

    def config(self):
        return Dinov2WithRegistersConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_register_tokens=3,
            initializer_range=0.2,
            num_labels=5,
            out_indices=[1, 2, 3, 4],
        )

    def build(self):
        model = super().build()
        for name, parameter in model.named_parameters():
            if "register_tokens" in name:
                torch.nn.init.normal_(parameter)  # Transformers starts with zeros
        return model


class TestDinov2WithRegistersModel(Dinov2WithRegistersTester):
    secondary = True
    native, auto = Dinov2WithRegistersModel, AutoModel

    def test_class_token_and_registers_bypass_clustering(self, fast):
        with ta.observe_clusters() as seen:
            states = fast(self.images(), output_hidden_states=True).hidden_states[ACCEL["cluster_after"]]
        assert torch.equal(seen[0].keys, states[:, 4:])


class TestDinov2WithRegistersForImageClassification(Dinov2WithRegistersTester):
    secondary = True
    native, auto = Dinov2WithRegistersForImageClassification, AutoModelForImageClassification


class TestDinov2WithRegistersBackbone(Dinov2WithRegistersTester):
    secondary = True
    native, auto = Dinov2WithRegistersBackbone, TokAccelDinov2WithRegistersBackbone
    image_size, grid = (32, 48), (8, 12)


class TestDinov2WithRegistersAdaptive(Adaptive, Dinov2WithRegistersTester):
    native, auto = Dinov2WithRegistersBackbone, TokAccelDinov2WithRegistersBackbone


def test_upernet_on_it_is_accelerated_through_the_backbone():
    torch.manual_seed(0)
    backbone = Dinov2WithRegistersTester().config()
    head = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_in_channels=32, num_labels=3)
    ).eval()
    fast, images = ta.accelerate(head, ACCEL), FamilyTester().images()
    assert type(fast.backbone) is TokAccelDinov2WithRegistersBackbone
    logits, native = fast(images).logits, head(images).logits
    assert logits.shape == native.shape
    assert (logits - native).abs().max() > 1e-3 * native.abs().max()
