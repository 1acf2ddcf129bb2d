import pytest
import torch
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    RfDetrConfig,
    RfDetrDinov2Backbone,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
    RfDetrModel,
)
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

import hf_tokaccel as ta
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.models.rf_detr import TokAccelRfDetrDinov2Backbone

# 2 x 2 windows of 4 x 4 tokens; block 1 is global, 0, 2 and 3 are not.
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_windows": 2,
    "initializer_range": 0.2,
    "out_indices": [1, 4],
}
SMALL = {
    "d_model": 32,
    "c2f_num_blocks": 1,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 6,
    "group_detr": 2,
    "dropout": 0.0,
    "num_labels": 5,
    "init_std": 0.2,
}


class BatchWindowTester(FamilyTester):
    takes_adaptive = False
    grid = (4, 4)
    accel = {**ACCEL, "cluster_grid": [2, 2], "neighbors": 2}

    def test_the_error_names_the_window(self, model):
        accel, message = {**self.accel, "cluster_grid": 5}, "as tokens: a window has 4 x 4"
        with pytest.raises(ValueError, match=message):
            self.run(ta.accelerate(model, accel), self.images())
        with pytest.raises(ValueError, match=message):
            ta.accelerate(model, accel, image_size=32)

    def test_windows_that_do_not_divide_the_image_are_refused(self, fast):
        with pytest.raises(ValueError, match=r"multiples of the patch size times 2 windows, \(8, 8\), for example"):
            self.run(fast, self.images(size=(32, 36)))


class DetectionTester(BatchWindowTester):
    """Hidden states and attentions that a detector returns are those of its decoder, which is not accelerated."""

    flop_ratio = 0.99

    def test_hidden_states_have_native_shapes_and_order(self, model, fast):
        with torch.no_grad():
            expected, actual = (m(self.images(), output_hidden_states=True) for m in (model, fast))
        assert list(actual.keys()) == list(expected.keys())
        assert [h.shape for h in actual.hidden_states] == [h.shape for h in expected.hidden_states]

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model, fast):
        with torch.no_grad():
            expected, actual = (m(self.images(), output_attentions=True) for m in (model, fast))
        assert [a.shape for a in actual.attentions] == [a.shape for a in expected.attentions]

    def run_batch(self, model, images):
        # What the decoder's layers return is stacked ahead of the batch.
        names = ("last_hidden_state", "enc_outputs_class", "enc_outputs_coord_logits", "pred_boxes", "pred_masks")
        with torch.no_grad():
            output = model(images)
        return [output[name] for name in names if name in output]

    def count(self, module):
        # With gradients: without, the counter fails on the views that a detector takes of its queries.
        with flop_counter() as counter:
            module(self.images())
        return counter


class TestRfDetrDinov2Backbone(BatchWindowTester):
    secondary = True
    native, auto = RfDetrDinov2Backbone, TokAccelRfDetrDinov2Backbone
    legacy_key = new_key = "encoder.layer.0.attention."

    def config(self):
        return RfDetrDinov2Config(**TINY)

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, fast):
        fast = ta.accelerate(fast, self.accel)
        fast.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = fast(self.images(), output_attentions=True).attentions
        # Every window has a class token; block 1 attends over all four windows of an image.
        assert [a.shape[0] for a in attentions] == [8, 2, 8, 8]
        assert [a.shape[-1] for a in attentions] == [17, 20, 5, 5]

    def test_windows_are_clustered_on_their_own(self, fast):
        with ta.observe_clusters() as seen:
            self.run(fast, self.images())
        assert seen[0].labels().shape == (8, 4, 4)


class TestRfDetrModel(DetectionTester):
    secondary = True
    native, auto = RfDetrModel, AutoModel
    legacy_key = "backbone.0.encoder.encoder.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.backbone.encoder.layer.0.attention."

    def config(self):
        return RfDetrConfig(backbone_config={**TINY, "model_type": "rf_detr_dinov2"}, **SMALL)


class TestRfDetrForObjectDetection(TestRfDetrModel):
    slow_graphs = True
    secondary = False
    native, auto = RfDetrForObjectDetection, AutoModelForObjectDetection


class TestRfDetrForInstanceSegmentation(TestRfDetrModel):
    secondary = True
    native, auto = RfDetrForInstanceSegmentation, AutoModelForInstanceSegmentation
