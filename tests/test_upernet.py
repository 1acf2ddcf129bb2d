import pytest
import torch
from family import ACCEL, TINY_DINOV2, FamilyTester
from test_beit import TINY
from transformers import AutoModelForSemanticSegmentation, UperNetConfig, UperNetForSemanticSegmentation

import hf_tokaccel as ta


class UperNetTester(FamilyTester):
    native, auto = UperNetForSemanticSegmentation, AutoModelForSemanticSegmentation
    flop_ratio = 0.99
    backbone = {}

    def config(self):
        return UperNetConfig(
            backbone_config={**self.backbone},
            hidden_size=8,
            auxiliary_channels=8,
            auxiliary_in_channels=32,
            pool_scales=[2, 4],
            initializer_range=0.2,
            num_labels=5,
        )

    def build(self):
        model = super().build()
        for name, parameter in model.named_parameters():
            if "position_bias_table" in name:
                torch.nn.init.normal_(parameter)
        return model


class TestUperNetOnBeit(UperNetTester):
    secondary = True
    backbone = {**TINY, "model_type": "beit", "out_indices": [1, 2, 3, 4], "add_fpn": True}
    image_size, grid = (32, 48), (8, 12)
    legacy_key = "backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.beit.layers.0.attention.q_proj.weight"


class TestUperNetOnDinov2(UperNetTester):
    secondary = True
    backbone = {**TINY_DINOV2, "reshape_hidden_states": True}
    legacy_key = "backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.encoder.layer.0.attention.q_proj.weight"


def test_a_backbone_that_is_not_supported_is_refused():
    with pytest.raises(ValueError, match=r"UperNet on a 'resnet' backbone cannot be accelerated.*beit"):
        ta.accelerate_config(UperNetConfig(), ACCEL)
