import torch
from test_mask2former import BACKBONE
from test_oneformer import ConditionedTester
from transformers import (
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoModel,
)

TEXT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 99,
}
TINY = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_n_points": 2,
    "decoder_n_points": 2,
    "num_queries": 6,
    "dropout": 0.0,
    "max_text_len": 16,
}


class GroundingTester(ConditionedTester):
    def config(self):
        backbone = {name: value for name, value in BACKBONE.items() if name != "out_features"}
        return GroundingDinoConfig(
            backbone_config={**backbone, "out_indices": [2, 3, 4]}, text_config=dict(TEXT), **TINY
        )

    def inputs(self):
        return {"input_ids": torch.tensor([[2, 5, 6, 22, 3]] * 2)}


class TestGroundingDinoModel(GroundingTester):
    native, auto = GroundingDinoModel, AutoModel


class TestGroundingDinoForObjectDetection(GroundingTester):
    native, auto = GroundingDinoForObjectDetection, AutoModelForZeroShotObjectDetection
