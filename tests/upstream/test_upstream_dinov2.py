"""Transformers' own tests on DINOv2 and its backbone: native as control, then ours."""

from unittest import TestCase

from transformers import Dinov2Backbone, Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from hf_tokaccel.models.dinov2 import TokAccelDinov2Backbone, TokAccelDinov2ForImageClassification, TokAccelDinov2Model
from upstream import AcceleratedBackboneTests, AcceleratedModelTests, BackboneTests, ModelTests


class Dinov2Family:
    # The mask token is for pre-training, which Transformers leaves out.
    test_all_params_have_gradient = False

    def native_config(self):
        return Dinov2Config(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=2,
            use_swiglu_ffn=True,
            out_features=["stage2", "stage4"],
        )


class Dinov2ModelTest(Dinov2Family, ModelTests, TestCase):
    all_model_classes = (Dinov2Model, Dinov2ForImageClassification, Dinov2Backbone)


class Dinov2BackboneTest(Dinov2Family, BackboneTests, TestCase):
    all_model_classes = (Dinov2Backbone,)


class TokAccelDinov2ModelTest(Dinov2Family, AcceleratedModelTests, TestCase):
    control = Dinov2ModelTest
    all_model_classes = (TokAccelDinov2Model, TokAccelDinov2ForImageClassification, TokAccelDinov2Backbone)


class TokAccelDinov2BackboneTest(Dinov2Family, AcceleratedBackboneTests, TestCase):
    control = Dinov2BackboneTest
    all_model_classes = (TokAccelDinov2Backbone,)
