"""Transformers' own tests on DPT, also its hybrid form: native as control, then ours."""

from unittest import TestCase

from family import ACCEL
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation, DPTForSemanticSegmentation, DPTModel

from hf_tokaccel.models.dpt import TokAccelDPTForDepthEstimation, TokAccelDPTForSemanticSegmentation, TokAccelDPTModel
from upstream import AcceleratedModelTests, ModelTests


class DPTFamily:
    cannot_train = (DPTForDepthEstimation, TokAccelDPTForDepthEstimation)
    # The heads do not read the encoder's last LayerNorm, and the first fusion layer has no residual.
    test_all_params_have_gradient = False

    def native_config(self, **fields):
        fields = {"neck_hidden_sizes": [8, 16, 16, 32], "reassemble_factors": [1, 0.5, 0.25, 0.125], **fields}
        return DPTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=37,
            backbone_out_indices=[0, 1, 2, 3],
            fusion_hidden_size=16,
            num_labels=3,
            **fields,
        )


class DPTHybridFamily(DPTFamily):
    same_layers_as_another = True
    # The stem leaves 4 x 4 tokens.
    image_size, patch_size = 64, 16
    accel = {**ACCEL, "cluster_grid": [2, 2]}

    def native_config(self):
        backbone = BitConfig(
            layer_type="bottleneck",
            global_padding="same",
            embedding_dynamic_padding=True,
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[1, 1, 1],
            num_groups=4,
            out_features=["stage1", "stage2", "stage3"],
        )
        return super().native_config(
            is_hybrid=True,
            backbone_config=backbone,
            backbone_featmap_shape=[1, 64, 4, 4],
            neck_hidden_sizes=[16, 32, 16, 32],
            reassemble_factors=[1, 1, 1, 0.5],
        )


class DPTModelTest(DPTFamily, ModelTests, TestCase):
    all_model_classes = (DPTModel, DPTForDepthEstimation, DPTForSemanticSegmentation)


class DPTHybridModelTest(DPTHybridFamily, ModelTests, TestCase):
    all_model_classes = (DPTForDepthEstimation,)


class TokAccelDPTModelTest(DPTFamily, AcceleratedModelTests, TestCase):
    control = DPTModelTest
    all_model_classes = (TokAccelDPTModel, TokAccelDPTForDepthEstimation, TokAccelDPTForSemanticSegmentation)


class TokAccelDPTHybridModelTest(DPTHybridFamily, AcceleratedModelTests, TestCase):
    control = DPTHybridModelTest
    all_model_classes = (TokAccelDPTForDepthEstimation,)
