"""Transformers' own tests on ViT: native as control, then ours."""

from unittest import TestCase

from transformers import (
    Dinov2Backbone,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_tokaccel.models.vit import (
    TokAccelViTBackbone,
    TokAccelViTForImageClassification,
    TokAccelViTForMaskedImageModeling,
    TokAccelViTModel,
)
from upstream import AcceleratedBackboneTests, AcceleratedModelTests, ModelTests

from . import test_upstream_dinov2 as dinov2


class ViTFamily:
    def native_config(self):
        return ViTConfig(
            image_size=32,
            patch_size=4,
            encoder_stride=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=37,
        )


class ViTModelTest(ViTFamily, ModelTests, TestCase):
    all_model_classes = (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)


class TokAccelViTModelTest(ViTFamily, AcceleratedModelTests, TestCase):
    control = ViTModelTest
    all_model_classes = (TokAccelViTModel, TokAccelViTForImageClassification, TokAccelViTForMaskedImageModeling)


class ViTBackboneFamily(ViTFamily):
    """Transformers has no ViT backbone, so DINOv2's is the control."""

    # Upstream wants a tensor as first output; for DINOv2 the model class, which comes first, stands for the backbone.
    test_retain_grad_hidden_states_attentions = None

    def make_config(self):
        config = super().make_config()
        config.out_features = ["stage2", "stage4"]
        return config


class Dinov2BackboneModelControl(dinov2.Dinov2Family, ModelTests, TestCase):
    # It has been run among DINOv2's; here it only tells what is skipped natively.
    __test__ = False
    all_model_classes = (Dinov2Backbone,)
    test_retain_grad_hidden_states_attentions = None  # as above


class TokAccelViTBackboneModelTest(ViTBackboneFamily, AcceleratedModelTests, TestCase):
    control = Dinov2BackboneModelControl
    all_model_classes = (TokAccelViTBackbone,)


class TokAccelViTBackboneTest(ViTBackboneFamily, AcceleratedBackboneTests, TestCase):
    control = dinov2.Dinov2BackboneTest
    all_model_classes = (TokAccelViTBackbone,)
