"""Transformers' own tests on our Segmenter: native as control, then accelerated."""

from unittest import TestCase

from transformers import SegformerForSemanticSegmentation, SegformerModel

from hf_tokaccel.models.segmenter import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterModel,
    TokAccelSegmenterForSemanticSegmentation,
    TokAccelSegmenterModel,
)
from upstream import AcceleratedModelTests, ModelTests
from upstream.loading import same_role

# Transformers does not know the native classes either.
same_role(SegmenterModel, SegformerModel)
same_role(SegmenterForSemanticSegmentation, SegformerForSemanticSegmentation)


class SegmenterFamily:
    def native_config(self):
        return SegmenterConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=37,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=37,
            num_labels=3,
        )


class SegmenterModelTest(SegmenterFamily, ModelTests, TestCase):
    all_model_classes = (SegmenterModel, SegmenterForSemanticSegmentation)


class TokAccelSegmenterModelTest(SegmenterFamily, AcceleratedModelTests, TestCase):
    control = SegmenterModelTest
    all_model_classes = (TokAccelSegmenterModel, TokAccelSegmenterForSemanticSegmentation)
