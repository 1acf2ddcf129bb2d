import torch
from adaptive_family import Adaptive
from family import FamilyTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)


class ViTMSNTester(FamilyTester):
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    other_size = None

    def config(self):
        return ViTMSNConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
            num_labels=5,
        )

    def build(self):
        model = super().build()
        for name, parameter in model.named_parameters():
            if "cls_token" in name or "position" in name:
                torch.nn.init.normal_(parameter)  # Transformers starts with zeros
        return model


class TestViTMSNModel(ViTMSNTester):
    secondary = True
    native, auto = ViTMSNModel, AutoModel


class TestViTMSNForImageClassification(ViTMSNTester):
    secondary = True
    native, auto = ViTMSNForImageClassification, AutoModelForImageClassification

    def test_nothing_is_reconstructed_for_the_class_token(self, fast, monkeypatch):
        monkeypatch.setattr("hf_tokaccel.hosts.clusters.reconstruct_tokens", None)
        self.run(fast, self.images())


class TestViTMSNAdaptive(Adaptive, ViTMSNTester):
    native, auto = ViTMSNModel, AutoModel
