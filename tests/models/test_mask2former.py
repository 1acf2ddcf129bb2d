import pytest
import torch
from family import flatten
from test_swin import ACCEL, StagedTester, awaken
from test_swin import TINY as SWIN
from transformers import (
    AutoModel,
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    Mask2FormerModel,
    ResNetConfig,
    pipeline,
)

import hf_tokaccel as ta
from hf_tokaccel.functional import plan_reconstruction
from hf_tokaccel.hosts import clusters
from hf_tokaccel.measure.flops import flop_counter

BACKBONE = {
    **SWIN,
    "model_type": "swin",
    "depths": [1, 4, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 6,
    "num_labels": 5,
}


class QueryTester(StagedTester):
    """Heads with queries on a Swin backbone; hidden states and attentions that they return are those of the head."""

    depth = 7
    flop_ratio = 0.99

    def build(self):
        return awaken(super().build())

    def test_hidden_states_have_native_shapes_and_order(self, model, fast):
        with torch.no_grad():
            expected, actual = (m(self.images(), output_hidden_states=True) for m in (model, fast))
        assert list(actual.keys()) == list(expected.keys())
        shapes = [[h.shape for h in flatten(output.to_tuple())] for output in (actual, expected)]
        assert shapes[0] == shapes[1]
        assert torch.equal(actual.encoder_hidden_states[0], expected.encoder_hidden_states[0])
        self.assert_differs(actual.encoder_hidden_states[1:2], expected.encoder_hidden_states[1:2])

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model, fast):
        """Those that are returned are the decoder's; the backbone has its own."""
        with torch.no_grad():
            expected, actual = (m(self.images(), output_attentions=True).attentions for m in (model, fast))
        assert [a.shape for a in flatten(actual)] == [a.shape for a in flatten(expected)]
        with ta.observe_clusters() as seen:
            self.run(fast, self.images())
        assert [(s.grid, s.cluster_grid, len(s.keys)) for s in seen] == [((4, 4), (2, 2), self.windows)]

    def test_the_span_ends_with_its_stage(self, model, fast):
        assert fast.config.accel["reconstruct_after"] == 5
        with pytest.raises(ValueError, match=r"reconstruct_after=6 .*between 3 and 5, where stage 2 of depths"):
            ta.accelerate(model, {**self.accel, "reconstruct_after": 6})


class Mask2FormerTester(QueryTester):
    legacy_key = "encoder.encoder.layers.0.blocks.0.attention.self.query"
    new_key = "encoder.swin.encoder.layers.0.blocks.0.attention.q_proj"

    def config(self):
        return Mask2FormerConfig(backbone_config=BACKBONE, **TINY)


class TestMask2FormerModel(Mask2FormerTester):
    secondary = True
    native, auto = Mask2FormerModel, AutoModel


class TestMask2FormerForUniversalSegmentation(Mask2FormerTester):
    native, auto = Mask2FormerForUniversalSegmentation, AutoModelForUniversalSegmentation

    def test_pipeline(self, fast, tmp_path, caplog):
        from PIL import Image

        fast.save_pretrained(tmp_path)
        Mask2FormerImageProcessorPil(size={"height": 80, "width": 96}, size_divisor=16).save_pretrained(tmp_path)
        segment = pipeline("image-segmentation", model=str(tmp_path))
        assert type(segment.model).__name__ == "TokAccelMask2FormerForUniversalSegmentation"
        with ta.observe_clusters() as seen:
            found = segment(Image.new("RGB", (50, 40), "red"), subtask="semantic")
        assert len(seen) == 1
        assert found[0]["mask"].size == (50, 40)
        assert "not supported" not in caplog.text

    def test_a_clip_that_shares_a_plan_computes_one_for_all_its_frames(self, model, fast, monkeypatch):
        """Video instance segmentation; equal frames and clips of another length are tested in `FamilyTester`."""
        planned = []

        def plan(tokens, *args, **kwargs):
            planned.append(len(tokens))
            return plan_reconstruction(tokens, *args, **kwargs)

        monkeypatch.setattr(clusters, "plan_reconstruction", plan)
        shared = ta.accelerate(model, {**self.accel, "shared_frames": 4})
        clip, spent = self.images(4), []
        for module in (fast, shared):
            with flop_counter() as counter, torch.no_grad():
                output = module(clip)
            spent.append(counter.get_total_flops())
            assert [len(value) for value in (output.class_queries_logits, output.masks_queries_logits)] == [4, 4]
        assert planned == [4 * 9, 9]  # of 9 windows
        assert spent[1] < spent[0]
        frames = output.masks_queries_logits
        assert all((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(frames[1:], frames[:-1], strict=True))

    def test_loss(self, model, fast):
        labels = {
            "mask_labels": [torch.ones(1, *self.image_size)] * 2,
            "class_labels": [torch.tensor([index]) for index in range(2)],
        }
        with torch.no_grad():
            torch.manual_seed(0)
            expected = model(self.images(), **labels).loss
            torch.manual_seed(0)
            actual = fast(self.images(), **labels).loss
        assert actual.isfinite()
        assert actual != expected


def test_backbones_that_cannot_be_accelerated_are_refused():
    config = Mask2FormerConfig(backbone_config=ResNetConfig(out_features=["stage1", "stage4"]), **TINY)
    with pytest.raises(ValueError, match="'mask2former' on a 'resnet' backbone cannot be accelerated"):
        ta.accelerate_config(config, ACCEL)
