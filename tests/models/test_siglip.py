import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models.siglip import TokAccelSiglipVisionModel

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TINY_TEXT = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 8,
}
TEXT = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])


class SiglipVisionTester(FamilyTester):
    legacy_key = new_key = "encoder.layers.0.self_attn.q_proj.weight"  # a whole checkpoint prefixes it, see below
    other_size = None

    def config(self):
        return SiglipVisionConfig(**TINY)


class TestSiglipVisionModel(SiglipVisionTester):
    secondary = True
    native, auto = SiglipVisionModel, AutoModel


class TestSiglipVisionAdaptive(Adaptive, TestSiglipVisionModel):
    pass


class TestSiglipForImageClassification(SiglipVisionTester):
    secondary = True
    native, auto = SiglipForImageClassification, AutoModelForImageClassification

    def config(self):
        return SiglipConfig(vision_config=TINY, text_config=TINY_TEXT, num_labels=5)


@pytest.fixture(scope="module")
def siglip():
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(vision_config=TINY, text_config=TINY_TEXT)).eval()


def test_vision_tower_is_accelerated_and_text_tower_stays(siglip):
    images, fast = SiglipVisionTester().images(), ta.accelerate(siglip, ACCEL)
    native, actual = (m(pixel_values=images, input_ids=TEXT) for m in (siglip, fast))
    assert torch.equal(actual.text_embeds, native.text_embeds)
    assert (actual.image_embeds - native.image_embeds).abs().max() > 1e-3
    assert type(fast.text_model) is type(siglip.text_model)
    off = ta.accelerate(fast, None)(pixel_values=images, input_ids=TEXT)
    assert torch.equal(off.logits_per_image, native.logits_per_image)


def test_siglip_saves_and_loads(siglip, tmp_path):
    images, fast = SiglipVisionTester().images(), ta.accelerate(siglip, ACCEL)
    fast.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is type(fast)
        assert not info["missing_keys"]
        expected = fast(pixel_values=images, input_ids=TEXT).logits_per_image
        assert torch.equal(loaded.eval()(pixel_values=images, input_ids=TEXT).logits_per_image, expected)


def test_tower_loads_from_a_whole_siglip_checkpoint(siglip, tmp_path):
    siglip.save_pretrained(tmp_path)
    config = ta.accelerate_config(SiglipVisionConfig.from_pretrained(tmp_path), ACCEL)
    tower, info = TokAccelSiglipVisionModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"]
    images = SiglipVisionTester().images()
    expected = ta.accelerate(siglip.vision_model, ACCEL)(images).last_hidden_state
    assert torch.equal(tower.eval()(images).last_hidden_state, expected)


def test_siglip2_is_refused():
    """Its images are padded lists of patches, each image with a grid of its own."""
    model = Siglip2Model(Siglip2Config(vision_config={**TINY, "num_patches": 64}, text_config=TINY_TEXT))
    with pytest.raises(ValueError, match=r"'siglip2' cannot be accelerated\. Supported model types: .*siglip"):
        ta.accelerate(model, ACCEL)
