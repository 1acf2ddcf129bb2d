import torch
from test_rf_detr import SMALL, BatchWindowTester, DetectionTester
from transformers import AutoModel, AutoModelForObjectDetection, LwDetrConfig, LwDetrForObjectDetection, LwDetrModel
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone

import hf_tokaccel as ta
from hf_tokaccel.models.lw_detr import TokAccelLwDetrViTBackbone

# 2 x 2 windows of 4 x 4 tokens.
TINY = {
    "image_size": 32,
    "pretrain_image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_windows": 4,
    "window_block_indices": [0, 2, 3],
    "initializer_range": 0.2,
    "cae_init_values": 1.0,
    "out_indices": [1, 4],
}


class TestLwDetrViTBackbone(BatchWindowTester):
    secondary = True
    native, auto = LwDetrViTBackbone, TokAccelLwDetrViTBackbone
    legacy_key = new_key = "encoder.layer.0.attention."

    def config(self):
        return LwDetrViTConfig(**TINY)

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, fast):
        fast = ta.accelerate(fast, self.accel)
        fast.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = fast(self.images(), output_attentions=True).attentions
        assert [a.shape[0] for a in attentions] == [8, 2, 8, 8]
        assert [a.shape[-1] for a in attentions] == [16, 16, 4, 4]


class TestLwDetrModel(DetectionTester):
    secondary = True
    native, auto = LwDetrModel, AutoModel
    legacy_key = "backbone.backbone.encoder.layer.0.attention.attention.query.weight"
    new_key = "backbone.backbone.encoder.layer.0.attention.q_proj.weight"

    def config(self):
        backbone = {**TINY, "model_type": "lw_detr_vit"}
        return LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **SMALL)


class TestLwDetrForObjectDetection(TestLwDetrModel):
    native, auto = LwDetrForObjectDetection, AutoModelForObjectDetection
