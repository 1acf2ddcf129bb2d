import pytest
import torch
from adaptive_family import ADAPTIVE
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForObjectDetection,
    Deimv2Config,
    Deimv2ForObjectDetection,
)

import hf_tokaccel as ta
from hf_tokaccel.models.deimv2 import TokAccelDeimv2Model
from hf_tokaccel.models.dinov3_vit import TokAccelDINOv3ViTBackbone

# The detector picks queries by rank, so its outputs jump; the shared tester holds the backbone to its guarantees.


TINY = {
    "backbone_config": {
        "model_type": "dinov3_vit",
        "image_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_register_tokens": 2,
        "initializer_range": 0.2,
        "out_indices": [1, 3, 4],
    },
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
    "spatial_tuning_adapter_inplanes": 4,
    "initializer_range": 0.2,
    "lqe_hidden_dim": 8,
}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return Deimv2ForObjectDetection(Deimv2Config(**TINY, num_labels=4)).eval()


def run(model, size=(128, 128)):
    with torch.no_grad():
        return model(FamilyTester().images(size=size))


@pytest.mark.parametrize("accel", [ACCEL, ADAPTIVE], ids=["grid", "adaptive"])
def test_boxes_are_accelerated_through_the_backbone(detector, accel):
    fast = ta.accelerate(detector, accel)
    assert type(fast.model.conv_encoder.backbone) is TokAccelDINOv3ViTBackbone
    for size in ((128, 128), (96, 160)):
        actual, native = run(fast, size), run(detector, size)
        assert actual.pred_boxes.shape == native.pred_boxes.shape
        change = actual.encoder_last_hidden_state[0] - native.encoder_last_hidden_state[0]
        assert change.abs().max() > 1e-3 * native.encoder_last_hidden_state[0].abs().max()
    identity = {**ADAPTIVE, "clusters": [1.0, 1.0], "expansion": "nearest"}
    if accel is ACCEL:
        identity = {**ACCEL, "cluster_grid": [8, 8], "iterations": 0, "expansion": "nearest"}
    for same in (ta.accelerate(fast, None), ta.to_native(fast), ta.accelerate(detector, identity)):
        assert torch.equal(run(same).pred_boxes, run(detector).pred_boxes)
        assert torch.equal(run(same).logits, run(detector).logits)


@pytest.mark.parametrize("source", ["native", "accelerated"])
def test_detection_loads(detector, tmp_path, source):
    fast = ta.accelerate(detector, ACCEL)
    (detector if source == "native" else fast).save_pretrained(tmp_path)
    options = {"model_type": "tokaccel_deimv2", "accel": ACCEL} if source == "native" else {}
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert type(loaded) is type(fast)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(run(loaded.eval()).pred_boxes, run(fast).pred_boxes)


def test_model_without_heads_is_accelerated(detector):
    model = ta.accelerate(detector.model, ACCEL)
    assert type(model) is TokAccelDeimv2Model
    assert type(AutoModel.from_config(model.config)) is TokAccelDeimv2Model
    expected = run(ta.accelerate(detector, ACCEL)).encoder_last_hidden_state
    assert torch.equal(run(model).encoder_last_hidden_state[0], expected[0])


def test_gradients_reach_the_first_block(detector):
    fast = ta.accelerate(detector, ACCEL)
    fast(FamilyTester().images(size=(128, 128))).encoder_last_hidden_state[0].square().mean().backward()
    assert fast.model.conv_encoder.backbone.model.layer[0].mlp.up_proj.weight.grad.abs().max() > 0
    fast.zero_grad()


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="'deimv2' on a 'hgnet_v2' backbone instead of 'dinov3_vit' cannot be"):
        ta.accelerate_config(Deimv2Config(), ACCEL)
