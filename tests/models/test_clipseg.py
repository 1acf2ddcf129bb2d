import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegVisionConfig, CLIPSegVisionModel
from transformers.utils import output_capturing

import hf_tokaccel as ta
from hf_tokaccel.hosts import clusters
from hf_tokaccel.models.clipseg import TokAccelCLIPSegForImageSegmentation, TokAccelCLIPSegVisionModel

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
TEXT = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])


class TestCLIPSegVisionModel(FamilyTester):
    secondary = True
    native, auto = CLIPSegVisionModel, TokAccelCLIPSegVisionModel
    legacy_key = new_key = "encoder.layers.0.self_attn.q_proj.weight"  # a whole checkpoint prefixes it, see below

    def config(self):
        return CLIPSegVisionConfig(**TINY)


class TestCLIPSegVisionAdaptive(Adaptive, TestCLIPSegVisionModel):
    pass


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    config = CLIPSegConfig(
        vision_config=TINY,
        text_config=TINY_TEXT,
        projection_dim=16,
        initializer_factor=3.0,
        extract_layers=[0, 1, 3],
        reduce_dim=16,
        decoder_intermediate_size=32,
    )
    return CLIPSegForImageSegmentation(config).eval()


def run(model, size=(32, 32), **kwargs):
    with torch.no_grad():
        return model(input_ids=TEXT, pixel_values=FamilyTester().images(size=size), **kwargs)


def test_masks_are_accelerated_and_prompts_are_not(segmenter):
    fast = ta.accelerate(segmenter, ACCEL)
    for size in ((32, 32), (48, 48)):
        actual, native = run(fast, size), run(segmenter, size)
        assert actual.logits.shape == native.logits.shape
        assert (actual.logits - native.logits).abs().max() > 1e-3 * native.logits.abs().max()
        assert torch.equal(actual.conditional_embeddings, native.conditional_embeddings)
    assert type(fast.clip.text_model) is type(segmenter.clip.text_model)
    assert type(fast.decoder) is type(segmenter.decoder)
    assert torch.equal(run(ta.accelerate(fast, None)).logits, run(segmenter).logits)
    identity = {**ACCEL, "cluster_grid": [8, 8], "iterations": 0, "expansion": "nearest"}
    assert torch.equal(run(ta.accelerate(segmenter, identity)).logits, run(segmenter).logits)


def test_image_prompts_run_through_the_accelerated_tower(segmenter):
    fast, images = ta.accelerate(segmenter, ACCEL), FamilyTester().images(seed=2)
    native, actual = (
        m(pixel_values=FamilyTester().images(), conditional_pixel_values=images) for m in (segmenter, fast)
    )
    assert (actual.conditional_embeddings - native.conditional_embeddings).abs().max() > 1e-3
    assert actual.logits.shape == native.logits.shape


@pytest.mark.skipif(not hasattr(output_capturing, "selected_hidden_states"), reason="new in transformers 5.23")
def test_only_what_the_decoder_reads_is_reconstructed(segmenter, monkeypatch):
    fast, calls, original = ta.accelerate(segmenter, ACCEL), [], clusters.reconstruct_tokens
    monkeypatch.setattr("hf_tokaccel.hosts.clusters.reconstruct_tokens", lambda *a: calls.append(1) or original(*a))
    expected = run(fast, output_hidden_states=True)
    everything = len(calls)
    calls.clear()
    assert torch.equal(run(fast).logits, expected.logits)
    assert everything == 3  # after the blocks 1, 2 and 3; block 0 comes before the clustering
    assert len(calls) == 2  # block 2 is not read


@pytest.mark.slow
def test_segmentation_compiles_without_graph_break(segmenter):
    fast = ta.accelerate(segmenter, ACCEL)
    # First, since Transformers installs its recording hooks in the first call, under a lock that cannot be traced.
    expected = run(fast).logits
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.allclose(run(compiled).logits, expected, atol=1e-4)


@pytest.mark.parametrize("source", ["native", "accelerated"])
def test_segmentation_loads(segmenter, tmp_path, source):
    fast = ta.accelerate(segmenter, ACCEL)
    (segmenter if source == "native" else fast).save_pretrained(tmp_path)
    options = {"config": fast.config} if source == "native" else {}
    loaded, info = TokAccelCLIPSegForImageSegmentation.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(run(loaded.eval()).logits, run(fast).logits)
