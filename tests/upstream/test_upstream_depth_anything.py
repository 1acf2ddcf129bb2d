"""Transformers' own tests on Depth Anything: native as control, then ours."""

from unittest import TestCase

from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from hf_tokaccel.models.depth_anything import TokAccelDepthAnythingForDepthEstimation
from upstream import AcceleratedModelTests, ModelTests


class DepthAnythingFamily:
    cannot_train = (DepthAnythingForDepthEstimation, TokAccelDepthAnythingForDepthEstimation)

    def native_config(self):
        backbone = Dinov2Config(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
        )
        return DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=4,
            reassemble_hidden_size=32,
            neck_hidden_sizes=[8, 16, 16, 32],
            reassemble_factors=[1, 0.5, 0.25, 0.125],
            fusion_hidden_size=16,
            head_hidden_size=8,
        )


class DepthAnythingModelTest(DepthAnythingFamily, ModelTests, TestCase):
    all_model_classes = (DepthAnythingForDepthEstimation,)


class TokAccelDepthAnythingModelTest(DepthAnythingFamily, AcceleratedModelTests, TestCase):
    control = DepthAnythingModelTest
    all_model_classes = (TokAccelDepthAnythingForDepthEstimation,)
