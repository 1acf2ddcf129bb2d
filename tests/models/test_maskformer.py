from test_mask2former import BACKBONE, QueryTester
from transformers import (
    AutoModel,
    AutoModelForInstanceSegmentation,
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessorPil,
    MaskFormerModel,
    SwinConfig,
    pipeline,
)

import hf_tokaccel as ta

DECODER = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "encoder_layers": 1,
    "num_queries": 6,
    "dropout": 0.0,
}


class MaskFormerTester(QueryTester):
    legacy_key = new_key = "pixel_level_module.encoder.model.encoder.layers.0.blocks.0.attention.self.query"

    def config(self):
        backbone = {name: value for name, value in BACKBONE.items() if name != "model_type"}
        return MaskFormerConfig(
            backbone_config=SwinConfig(**backbone),
            decoder_config=DetrConfig(**DECODER),
            fpn_feature_size=32,
            mask_feature_size=32,
            num_labels=5,
        )


class TestMaskFormerModel(MaskFormerTester):
    secondary = True
    native, auto = MaskFormerModel, AutoModel


class TestMaskFormerForInstanceSegmentation(MaskFormerTester):
    secondary = True
    native, auto = MaskFormerForInstanceSegmentation, AutoModelForInstanceSegmentation

    def test_pipeline(self, fast, tmp_path):
        from PIL import Image

        fast.save_pretrained(tmp_path)
        MaskFormerImageProcessorPil(size={"height": 80, "width": 96}, size_divisor=16).save_pretrained(tmp_path)
        segment = pipeline("image-segmentation", model=str(tmp_path))
        assert type(segment.model).__name__ == "TokAccelMaskFormerForInstanceSegmentation"
        with ta.observe_clusters() as seen:
            found = segment(Image.new("RGB", (50, 40), "red"), subtask="semantic")
        assert len(seen) == 1
        assert found[0]["mask"].size == (50, 40)
