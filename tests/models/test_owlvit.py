import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModelForZeroShotObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTVisionConfig,
    OwlViTVisionModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models.owlvit import TokAccelOwlViTVisionModel

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "initializer_factor": 3.0,
}
TINY_TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEXT = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])  # a query for each image


class TestOwlViTVisionModel(FamilyTester):
    secondary = True
    native, auto = OwlViTVisionModel, TokAccelOwlViTVisionModel
    legacy_key = new_key = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    other_size = None

    def config(self):
        return OwlViTVisionConfig(**TINY)


class TestOwlViTVisionAdaptive(Adaptive, TestOwlViTVisionModel):
    pass


def run(model, size=(32, 32)):
    with torch.no_grad():
        images = FamilyTester().images(size=size)
        return model(input_ids=TEXT, pixel_values=images, interpolate_pos_encoding=size != (32, 32))


class OwlDetectorTester:
    """What OWL-ViT and OWLv2 detectors have in common: images and texts go in, which the shared tester cannot give."""

    config = None
    native = None
    model_type = None

    @pytest.fixture(scope="class")
    @classmethod
    def detector(cls):
        torch.manual_seed(0)
        config = cls.config(vision_config=TINY, text_config=TINY_TEXT, projection_dim=16, initializer_factor=0.3)
        return cls.native(config).eval()

    def towers(self, detector):
        return getattr(detector, self.model_type)

    def test_boxes_are_accelerated_and_queries_are_not(self, detector):
        fast = ta.accelerate(detector, ACCEL)
        for size in ((32, 32), (48, 48)):
            actual, native = run(fast, size), run(detector, size)
            for name in ("pred_boxes", "logits", "image_embeds"):
                assert actual[name].shape == native[name].shape
                assert (actual[name] - native[name]).abs().max() > 1e-3 * native[name].abs().max()
            assert torch.equal(actual.text_embeds, native.text_embeds)
        assert type(self.towers(fast).text_model) is type(self.towers(detector).text_model)
        identity = {**ACCEL, "cluster_grid": [8, 8], "iterations": 0, "expansion": "nearest"}
        for same in (ta.accelerate(fast, None), ta.accelerate(detector, identity)):
            assert torch.equal(run(same).pred_boxes, run(detector).pred_boxes)
            assert torch.equal(run(same).logits, run(detector).logits)

    def test_image_guided_detection_is_accelerated(self, detector):
        images = FamilyTester().images()
        with torch.no_grad():
            fast = ta.accelerate(detector, ACCEL)
            actual, native = (m.image_guided_detection(images, images.flip(0)) for m in (fast, detector))
        assert actual.target_pred_boxes.shape == native.target_pred_boxes.shape
        assert (actual.target_pred_boxes - native.target_pred_boxes).abs().max() > 1e-3

    def test_gradients_reach_the_first_block(self, detector):
        fast = ta.accelerate(detector, ACCEL).train()
        fast(input_ids=TEXT, pixel_values=FamilyTester().images()).pred_boxes.square().mean().backward()
        assert self.towers(fast).vision_model.encoder.layers[0].mlp.fc1.weight.grad.abs().max() > 0
        fast.zero_grad()

    @pytest.mark.parametrize("source", ["native", "accelerated"])
    def test_detection_loads(self, detector, tmp_path, source):
        fast = ta.accelerate(detector, ACCEL)
        (detector if source == "native" else fast).save_pretrained(tmp_path)
        options = {"model_type": f"tokaccel_{self.model_type}", "accel": ACCEL} if source == "native" else {}
        loaded, info = AutoModelForZeroShotObjectDetection.from_pretrained(
            tmp_path, output_loading_info=True, **options
        )
        assert type(loaded) is type(fast)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(run(loaded.eval()).pred_boxes, run(fast).pred_boxes)


class TestOwlViTForObjectDetection(OwlDetectorTester):
    config, native, model_type = OwlViTConfig, OwlViTForObjectDetection, "owlvit"
