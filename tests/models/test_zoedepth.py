import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from test_beit import TINY
from transformers import AutoModelForDepthEstimation, ZoeDepthConfig, ZoeDepthForDepthEstimation

import hf_tokaccel as ta

BACKBONE = {
    **TINY,
    "model_type": "beit",
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}


class TestZoeDepth(FamilyTester):
    secondary = True  # BEiT's blocks
    native, auto = ZoeDepthForDepthEstimation, AutoModelForDepthEstimation
    image_size, grid = (32, 48), (8, 12)
    flop_ratio = 0.97
    legacy_key = "backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.beit.layers.0.attention.q_proj.weight"
    options = {}

    def config(self):
        return ZoeDepthConfig(
            backbone_config={**BACKBONE},
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            bottleneck_features=8,
            num_relative_features=8,
            bin_embedding_dim=8,
            initializer_range=0.2,
            **self.options,
        )

    def build(self):
        model = super().build()
        for name, parameter in model.named_parameters():
            if "position_bias_table" in name:
                torch.nn.init.normal_(parameter)
        return model


class TestZoeDepthAdaptive(Adaptive, TestZoeDepth):
    pass


def test_two_metric_heads():
    """Which of them answers depends on the images of the whole batch, so native has no single graph, nor have we."""
    tester = TestZoeDepth()
    tester.options = {
        "bin_configurations": [
            {"name": "indoor", "n_bins": 8, "min_depth": 0.001, "max_depth": 10.0},
            {"name": "outdoor", "n_bins": 8, "min_depth": 0.001, "max_depth": 80.0},
        ],
        "num_patch_transformer_layers": 4,  # native takes four, and 128, for granted
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 16,
        "patch_transformer_num_attention_heads": 2,
    }
    torch.manual_seed(0)
    model, images = tester.build().eval(), tester.images()
    expected = tester.run(model, images)
    assert len(expected) == 2
    identity = {**ACCEL, "cluster_grid": list(tester.grid), "iterations": 0, "expansion": "nearest"}
    for same in (ta.accelerate(model, None), ta.accelerate(model, identity, tester.image_size)):
        assert all(torch.equal(a, b) for a, b in zip(tester.run(same, images), expected, strict=True))
    tester.assert_differs(tester.run(ta.accelerate(model, ACCEL), images), expected)


def test_a_backbone_that_is_not_supported_is_refused():
    config = ZoeDepthConfig(backbone_config={"model_type": "resnet", "out_features": ["stage1", "stage2"]})
    with pytest.raises(ValueError, match=r"'zoedepth' on a 'resnet' backbone cannot be accelerated.*beit"):
        ta.accelerate_config(config, ACCEL)
