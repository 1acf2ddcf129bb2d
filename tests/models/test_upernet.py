import pytest
import torch
from family import ACCEL, TINY_DINOV2, FamilyTester
from test_beit import TINY
from test_mask2former import BACKBONE as SWIN
from test_mask2former import QueryTester
from test_swin import StagedTester, awaken
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


class TestUperNetOnSwin(StagedTester):
    native, auto = UperNetForSemanticSegmentation, AutoModelForSemanticSegmentation
    secondary = True
    depth = 7
    flop_ratio = 0.99
    legacy_key = "backbone.encoder.layers.0.blocks.0.attention.self.query"
    new_key = "backbone.swin.encoder.layers.0.blocks.0.attention.q_proj"

    def config(self):
        sizes = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 4 * SWIN["embed_dim"]}
        return UperNetConfig(
            backbone_config={**SWIN}, pool_scales=[2, 4], initializer_range=0.2, num_labels=5, **sizes
        )

    def build(self):
        return awaken(super().build())

    test_the_span_ends_with_its_stage = QueryTester.test_the_span_ends_with_its_stage

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, fast):
        """Those of the last block of each stage."""
        fast = ta.accelerate(fast, self.accel)
        fast.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = fast(self.images(), output_attentions=True).attentions
        assert [a.shape[-1] for a in attentions[:3]] == [16, 4, 16]


def test_a_backbone_that_is_not_supported_is_refused():
    with pytest.raises(ValueError, match=r"'upernet' on a 'resnet' backbone cannot be accelerated.*beit"):
        ta.accelerate_config(UperNetConfig(), ACCEL)
