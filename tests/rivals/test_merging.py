"""Token merging: the functions, and whole models whose blocks run on merged tokens."""

import pytest
import torch
from family import TINY_DINOV2
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, SwinConfig, SwinModel

import hf_tokaccel as ta
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation
from hf_tokaccel.rivals.merging import merge_in_layers, merge_tokens, unmerge_tokens


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_merging_none_is_the_identity():
    tokens = noise(2, 10, 4)
    merged = merge_tokens(tokens, 0)
    assert torch.equal(merged.tokens, tokens)
    assert torch.equal(unmerge_tokens(merged.tokens, merged.rows), tokens)


def test_duplicates_merge_and_come_back_exactly():
    tokens = noise(2, 12, 4).repeat_interleave(2, 1)
    merged = merge_tokens(tokens, 12)
    assert merged.tokens.shape == (2, 12, 4)
    assert torch.equal(merged.sizes, torch.full((2, 12), 2.0))
    assert torch.equal(unmerge_tokens(merged.tokens, merged.rows), tokens)


def test_the_most_similar_pair_merges_to_its_mean_and_order_stays():
    tokens = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [-2, -0.1], [0, -1]]])
    merged = merge_tokens(tokens, 1)
    assert torch.equal(merged.tokens, torch.tensor([[[1.0, 0], [0, 1], [-1.5, -0.05], [0, -1]]]))
    assert merged.rows.tolist() == [[0, 1, 2, 2, 3]]


def test_a_second_step_weighs_by_size():
    tokens = noise(1, 3, 1).abs().repeat(1, 1, 5)  # all alike by cosine
    first = merge_tokens(tokens, 1)
    second = merge_tokens(first.tokens, 1, sizes=first.sizes)
    assert second.sizes.tolist() == [[3.0]]
    torch.testing.assert_close(second.tokens[0, 0], tokens[0].mean(0))
    assert second.rows.gather(1, first.rows).tolist() == [[0, 0, 0]]


def test_keys_decide_and_images_do_not_see_each_other():
    tokens, keys = noise(3, 16, 4), noise(3, 16, 8, seed=1)
    merged = merge_tokens(tokens, 5, keys=keys)
    assert not torch.equal(merged.rows, merge_tokens(tokens, 5).rows)
    for index in range(3):
        alone = merge_tokens(tokens[index, None], 5, keys=keys[index, None])
        assert torch.equal(alone.rows[0], merged.rows[index])
        torch.testing.assert_close(alone.tokens[0], merged.tokens[index])


def test_more_than_half_is_refused():
    with pytest.raises(ValueError, match=r"count=6 is not valid.*half of the 10 tokens.*for example count=1"):
        merge_tokens(noise(1, 10, 2), 6)


@pytest.fixture(scope="module")
def depth():
    torch.manual_seed(0)
    backbone = Dinov2Config(**{k: v for k, v in TINY_DINOV2.items() if k != "model_type"})
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=4,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        initializer_range=0.2,
    )
    return DepthAnythingForDepthEstimation(config).eval()


@torch.no_grad()
def test_a_model_that_merges_none_is_the_dense_one(depth):
    images = noise(2, 3, 32, 32)
    assert torch.equal(merge_in_layers(depth, 0)(images).predicted_depth, depth(images).predicted_depth)


@torch.no_grad()
def test_heads_get_all_tokens_and_merging_is_counted(depth):
    images, dense = noise(2, 3, 32, 32), depth(noise(2, 3, 32, 32)).predicted_depth
    fast = merge_in_layers(depth, 12)
    costs = []
    for model in (depth, fast):
        with flop_counter() as counter:
            output = model(images).predicted_depth
        assert output.shape == dense.shape
        costs.append(counter.get_total_flops())
    assert (output - dense).abs().max() > 1e-3 * dense.abs().max()
    assert costs[1] < costs[0]
    # Blocks on 52, 40, 28 and 16 of 64 tokens, each after a product of one half with the other, in float32.
    lengths, before = [52, 40, 28, 16], [64, 52, 40, 28]
    width = 32

    def block(n):
        return 2 * 12 * (n + 1) * width**2 + 4 * (n + 1) ** 2 * width

    saved = sum(block(64) - block(n) for n in lengths) - sum(2 * (n // 2) ** 2 * width for n in before)
    assert costs[0] - costs[1] == 2 * saved
    states = fast(images, output_hidden_states=True).hidden_states
    assert all(state.shape[1] == 65 for state in states)


def test_the_decoder_of_segmenter_runs_on_merged_tokens_and_one_graph_is_enough():
    torch.manual_seed(0)
    config = SegmenterConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_labels=5,
        decoder_num_hidden_layers=1,
        initializer_range=0.2,
    )
    model, images = SegmenterForSemanticSegmentation(config).eval(), noise(2, 3, 32, 32)
    fast = merge_in_layers(model, 8)
    sizes = []
    fast.decode_head.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    with torch.no_grad():
        logits = fast(images).logits
        assert logits.shape == model(images).logits.shape
    assert sizes == [64 - 3 * 8]
    fast.decode_head._forward_pre_hooks.clear()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="eager")(images).logits
    torch.testing.assert_close(compiled, logits)


def test_windows_and_saving_are_refused(depth, tmp_path):
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4)
    with pytest.raises(ValueError, match="token merging leaves no grid of tokens"):
        merge_in_layers(SwinModel(config), 4)
    with pytest.raises(ValueError, match=r"hf_tokaccel\.accelerate"):
        merge_in_layers(depth, 4).save_pretrained(tmp_path)
    assert type(ta.to_native(merge_in_layers(depth, 4))) is DepthAnythingForDepthEstimation
