import torch
from adaptive_family import Adaptive
from family import ACCEL, TINY_DINOV2, FamilyTester
from transformers import (
    AutoModelForDepthEstimation,
    PromptDepthAnythingConfig,
    PromptDepthAnythingForDepthEstimation,
)

import hf_tokaccel as ta


class TestPromptDepthAnything(FamilyTester):
    secondary = True
    native, auto = PromptDepthAnythingForDepthEstimation, AutoModelForDepthEstimation
    image_size, grid = (32, 48), (8, 12)
    flop_ratio = 0.97
    legacy_key = "backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.encoder.layer.0.attention.q_proj.weight"

    def config(self):
        return PromptDepthAnythingConfig(
            backbone_config={**TINY_DINOV2},
            patch_size=4,
            reassemble_hidden_size=32,
            neck_hidden_sizes=[16, 16, 16, 16],
            fusion_hidden_size=16,
            head_hidden_size=8,
            initializer_range=0.2,
        )

    def test_the_prompt_acts(self, model):
        prompt = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0)) * 5
        identity = {**ACCEL, "cluster_grid": [8, 12], "iterations": 0, "expansion": "nearest"}
        expected = self.run(model, self.images(), prompt_depth=prompt)
        actual = self.run(ta.accelerate(model, identity, self.image_size), self.images(), prompt_depth=prompt)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        self.assert_differs(actual, self.run(model, self.images()))
        self.assert_differs(self.run(ta.accelerate(model, ACCEL), self.images(), prompt_depth=prompt), expected)


class TestPromptDepthAnythingAdaptive(Adaptive, TestPromptDepthAnything):
    pass
