import pytest
import torch
from family import FamilyTester
from test_sam import ACCEL, TINY, TINY_VISION, WindowTester, awaken, photo, processor
from transformers import (
    AutoModel,
    AutoModelForMaskGeneration,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamHQVisionConfig,
    SamHQVisionModel,
    pipeline,
)

import hf_tokaccel as ta
from hf_tokaccel.models.sam_hq import TokAccelSamHQModel

__all__ = ["photo", "processor"]  # fixtures

TINY_HQ = {**TINY, "mask_decoder_config": {**TINY["mask_decoder_config"], "vit_dim": 32}}


class HQTester(WindowTester):
    legacy_key = new_key = "vision_encoder.layers.0.attn.qkv.weight"  # never renamed


class TestSamHQVisionModel(HQTester):
    secondary = True
    native, auto = SamHQVisionModel, AutoModel

    def config(self):
        return SamHQVisionConfig(**TINY_VISION)

    def test_intermediate_embeddings_are_the_states_after_global_blocks(self, model, fast):
        native, actual = (self.outputs(m) for m in (model, fast))
        assert list(actual.keys()) == list(native.keys()) == ["last_hidden_state", "intermediate_embeddings"]
        assert [e.shape for e in actual.intermediate_embeddings] == [(2, 8, 8, 32)] * 2
        states = self.outputs(fast, output_hidden_states=True).hidden_states
        assert torch.equal(actual.intermediate_embeddings[0], native.intermediate_embeddings[0])
        assert torch.equal(actual.intermediate_embeddings[1], states[3])
        self.assert_differs([actual.intermediate_embeddings[1]], [native.intermediate_embeddings[1]])
        as_tuple = self.outputs(fast, return_dict=False)
        assert torch.equal(as_tuple[1][1], states[3])

    def test_every_form_of_output_has_the_native_fields(self, model):
        eager = SamHQVisionModel._from_config(model.config, attn_implementation="eager").eval()
        fast = ta.accelerate(eager, ACCEL)
        for asked in ({"output_attentions": True}, {"output_attentions": True, "output_hidden_states": True}):
            native, actual = self.outputs(eager, **asked), self.outputs(fast, **asked)
            assert list(actual.keys()) == list(native.keys())
            assert len(actual.attentions) == 4

    def outputs(self, model, **kwargs):
        with torch.no_grad():
            return model(self.images(), **kwargs)


class TestSamHQModel(HQTester):
    secondary = True
    native, auto = SamHQModel, AutoModelForMaskGeneration
    states = "vision_hidden_states"

    def config(self):
        return SamHQConfig(**TINY_HQ)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return awaken(SamHQModel(SamHQConfig(**TINY_HQ))).eval()


@pytest.fixture(scope="module")
def fast(sam):
    return ta.accelerate(sam, ACCEL)


@pytest.mark.parametrize("hq_token_only", [True, False])
def test_prompts_by_the_native_processor(sam, fast, processor, photo, hq_token_only):
    processor = SamHQProcessor(processor.image_processor)
    inputs = processor(photo, input_points=[[[20.0, 20.0]]], return_tensors="pt").to(torch.float32)
    with torch.no_grad():
        native, actual = (m(**inputs, hq_token_only=hq_token_only).pred_masks for m in (sam, fast))
        embeddings, intermediate = fast.get_image_embeddings(inputs.pop("pixel_values"))
        embedded = fast(
            **inputs,
            image_embeddings=embeddings,
            intermediate_embeddings=intermediate,
            hq_token_only=hq_token_only,
        ).pred_masks
    assert actual.shape == native.shape
    assert (actual - native).abs().max() > 1e-3 * native.abs().max()
    assert torch.equal(embedded, actual)
    assert [e.shape for e in intermediate] == [(1, 8, 8, 32)] * 2


def test_prompts_outside_the_image_are_refused(fast):
    with pytest.raises(ValueError, match=r"input_points\[0, 0, 0\] .*32 x 32"):
        fast(FamilyTester().images(1), torch.tensor([[[[40.0, 4.0]]]]))


def test_mask_generation_pipeline(sam, fast, processor, photo, tmp_path):
    fast.save_pretrained(tmp_path)
    SamHQProcessor(processor.image_processor).save_pretrained(tmp_path)
    options = {"points_per_crop": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": 0.0}
    generator = pipeline("mask-generation", model=str(tmp_path))
    assert type(generator.model) is TokAccelSamHQModel
    actual = generator(photo, **options)
    native = pipeline("mask-generation", model=sam, image_processor=processor.image_processor)(photo, **options)
    assert actual["masks"]
    assert all(mask.shape == (48, 64) for mask in actual["masks"])
    assert actual["scores"].shape != native["scores"].shape or not torch.allclose(
        actual["scores"], native["scores"], atol=1e-4
    )
