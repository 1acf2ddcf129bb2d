import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModelForPoseEstimation,
    VitPoseBackbone,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)

import hf_tokaccel as ta
from hf_tokaccel.models.vitpose import TokAccelVitPoseBackbone

TINY = {
    "image_size": [64, 48],
    "patch_size": [8, 8],
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "out_indices": [2, 4],
}


class VitPoseTester(FamilyTester):
    image_size, grid = (64, 48), (8, 6)
    other_size = None


class TestVitPoseBackbone(VitPoseTester):
    secondary = True
    native, auto = VitPoseBackbone, TokAccelVitPoseBackbone
    legacy_key = new_key = "encoder.layer.0.attention.attention.query.weight"  # never renamed

    def config(self):
        return VitPoseBackboneConfig(**TINY)


class TestVitPoseForPoseEstimation(VitPoseTester):
    secondary = True  # ViT's blocks
    native, auto = VitPoseForPoseEstimation, AutoModelForPoseEstimation
    legacy_key = new_key = "backbone.encoder.layer.0.attention.attention.query.weight"

    def config(self):
        backbone = {**TINY, "model_type": "vitpose_backbone", "out_indices": [4]}
        return VitPoseConfig(backbone_config=backbone, num_labels=5, initializer_range=0.2)


class TestVitPoseAdaptive(Adaptive, TestVitPoseForPoseEstimation):
    pass


class TestExperts:
    """Every image of a batch has its own experts, whose index is not one per token."""

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        torch.manual_seed(0)
        backbone = {**TINY, "model_type": "vitpose_backbone", "num_experts": 3, "part_features": 8}
        return VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=5)).eval()

    @staticmethod
    def heatmaps(model, index):
        with torch.no_grad():
            return model(VitPoseTester().images(), dataset_index=torch.tensor(index)).heatmaps

    def test_identity_plan_is_native(self, model):
        accel = {**ACCEL, "cluster_grid": [8, 6], "iterations": 0, "expansion": "nearest"}
        assert torch.equal(self.heatmaps(ta.accelerate(model, accel), [2, 1]), self.heatmaps(model, [2, 1]))

    def test_experts_are_those_of_the_index(self, model):
        fast = ta.accelerate(model, ACCEL)
        first, second = self.heatmaps(fast, [0, 1]), self.heatmaps(fast, [2, 1])
        assert not torch.allclose(first[0], second[0], rtol=1e-3)
        assert torch.allclose(first[1], second[1])
        with pytest.raises(ValueError, match="dataset_index must be provided"):
            fast(VitPoseTester().images())
