import pytest
import torch
from test_vitdet import ACCEL, TINY, WindowTester
from transformers import AutoModelForImageMatting, VitMatteConfig, VitMatteForImageMatting

import hf_tokaccel as ta


class TestVitMatteForImageMatting(WindowTester):
    secondary = True
    native, auto = VitMatteForImageMatting, AutoModelForImageMatting
    legacy_key = new_key = "backbone.encoder.layer.0.attention.qkv.weight"
    image_size, other_size = (64, 80), (80, 56)
    flop_ratio = 0.97  # the detail capture module runs on pixels

    def config(self):
        backbone = {**TINY, "model_type": "vitdet", "patch_size": 8, "num_channels": 4, "out_indices": [4]}
        backbone |= {"image_size": 64, "pretrain_image_size": 64}
        return VitMatteConfig(
            backbone_config=backbone,
            hidden_size=32,
            convstream_hidden_sizes=[4, 8],
            fusion_hidden_sizes=[8, 8, 8],
            initializer_range=0.2,
        )

    def images(self, batch=2, size=None, seed=1):
        return torch.randn(batch, 4, *(size or self.image_size), generator=torch.Generator().manual_seed(seed))


def test_window_of_the_backbone_bounds_the_setting():
    config = ta.accelerate_config(TestVitMatteForImageMatting().config(), ACCEL)
    assert config.accel["normalization"] == "l1"
    with pytest.raises(ValueError, match="cluster_grid"):
        type(config)(**{**config.to_dict(), "accel": {**ACCEL, "cluster_grid": 5}})
