import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

import hf_tokaccel as ta
from hf_tokaccel.models.clip import TokAccelCLIPVisionModel, TokAccelCLIPVisionModelWithProjection

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "projection_dim": 16,
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
TEXT = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])


class CLIPVisionTester(FamilyTester):
    legacy_key = new_key = "encoder.layers.0.self_attn.q_proj.weight"  # a whole checkpoint prefixes it, see below
    other_size = None

    def config(self):
        return CLIPVisionConfig(**TINY)


class TestCLIPVisionModel(CLIPVisionTester):
    native, auto = CLIPVisionModel, AutoModel


class TestCLIPVisionAdaptive(Adaptive, TestCLIPVisionModel):
    pass


class TestCLIPVisionModelWithProjection(CLIPVisionTester):
    secondary = True
    native, auto = CLIPVisionModelWithProjection, TokAccelCLIPVisionModelWithProjection


class TestCLIPForImageClassification(CLIPVisionTester):
    secondary = True
    native, auto = CLIPForImageClassification, AutoModelForImageClassification

    def config(self):
        return CLIPConfig(vision_config=TINY, text_config=TINY_TEXT, projection_dim=16, num_labels=5)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=TINY, text_config=TINY_TEXT, projection_dim=16, initializer_factor=3.0)
    return CLIPModel(config).eval()


def test_vision_tower_is_accelerated_and_text_tower_stays(clip):
    images, fast = CLIPVisionTester().images(), ta.accelerate(clip, ACCEL)
    native, actual = (m(pixel_values=images, input_ids=TEXT, output_hidden_states=True) for m in (clip, fast))
    assert torch.equal(actual.text_embeds, native.text_embeds)
    assert (actual.image_embeds - native.image_embeds).abs().max() > 1e-3
    tower = ta.accelerate(clip.vision_model, ACCEL)(images, output_hidden_states=True)
    states = actual.vision_model_output.hidden_states
    assert all(torch.equal(a, b) for a, b in zip(states, tower.hidden_states, strict=True))
    assert type(fast.text_model) is type(clip.text_model)
    off = ta.accelerate(fast, None)(pixel_values=images, input_ids=TEXT)
    assert torch.equal(off.logits_per_image, native.logits_per_image)


def test_clip_saves_and_loads(clip, tmp_path):
    images, fast = CLIPVisionTester().images(), ta.accelerate(clip, ACCEL)
    fast.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is type(fast)
        assert not info["missing_keys"]
        expected = fast(pixel_values=images, input_ids=TEXT).logits_per_image
        assert torch.equal(loaded.eval()(pixel_values=images, input_ids=TEXT).logits_per_image, expected)


def test_tower_loads_from_a_whole_clip_checkpoint(clip, tmp_path):
    """As dense heads do it, such as those that read `hidden_states[-2]`."""
    clip.save_pretrained(tmp_path)
    config = ta.accelerate_config(CLIPVisionConfig.from_pretrained(tmp_path), ACCEL)
    tower, info = TokAccelCLIPVisionModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"]
    images = CLIPVisionTester().images()
    expected = ta.accelerate(clip.vision_model, ACCEL)(images).last_hidden_state
    assert torch.equal(tower.eval()(images).last_hidden_state, expected)
