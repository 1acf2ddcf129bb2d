from adaptive_family import Adaptive
from family import TINY_DINOV2, FamilyTester
from transformers import AutoModelForDepthEstimation, DepthAnythingConfig, DepthAnythingForDepthEstimation, pipeline

import hf_tokaccel as ta


class TestDepthAnything(FamilyTester):
    native, auto = DepthAnythingForDepthEstimation, AutoModelForDepthEstimation
    image_size, grid = (32, 48), (8, 12)
    flop_ratio = 0.97
    legacy_key = "backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.encoder.layer.0.attention.q_proj.weight"

    def config(self):
        return DepthAnythingConfig(
            backbone_config={**TINY_DINOV2},
            patch_size=4,
            reassemble_hidden_size=32,
            neck_hidden_sizes=[16, 16, 16, 16],
            fusion_hidden_size=16,
            head_hidden_size=8,
            initializer_range=0.2,
        )

    def test_attention_implementation_of_head_and_backbone_is_kept(self, model, fast):
        assert fast.backbone.config._attn_implementation == model.backbone.config._attn_implementation == "sdpa"
        assert fast.backbone.config is fast.config.backbone_config

    def test_pipeline(self, fast, tmp_path):
        from PIL import Image
        from transformers import AutoImageProcessor, DPTImageProcessor

        fast.save_pretrained(tmp_path)
        DPTImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=4).save_pretrained(tmp_path)
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        result = pipeline("depth-estimation", model=str(tmp_path), image_processor=processor)(
            Image.new("RGB", (60, 40))
        )
        assert result["predicted_depth"].shape == (40, 60)


class TestDepthAnythingAdaptive(Adaptive, TestDepthAnything):
    pass


def test_it_is_the_backbone_that_is_accelerated():
    model = ta.accelerate(DepthAnythingForDepthEstimation(TestDepthAnything().config()), TestDepthAnything.accel)
    assert type(model.backbone).__name__ == "TokAccelDinov2Backbone"
    assert model.config.backbone_config.model_type == "dinov2"  # the setting stands once, at the top
