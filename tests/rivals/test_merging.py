"""Token merging: the functions, and whole models whose blocks run on merged tokens."""

import copy

import pytest
import torch
import torch.nn.functional as F
from family import TINY_DINOV2
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
)

import hf_tokaccel as ta
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation
from hf_tokaccel.rivals.merging import KeyMeans, merge_in_layers, merge_tokens, unmerge_tokens


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
    # Blocks on 52, 40, 28 and 16 of 64 tokens, each after one head's product and one of one half with the other.
    lengths, before = [52, 40, 28, 16], [64, 52, 40, 28]
    width = 32
    head = width // fast.config.backbone_config.num_attention_heads

    def block(n):
        return 2 * 12 * (n + 1) * width**2 + 4 * (n + 1) ** 2 * width

    def matching(n):
        return 2 * n * width * head + 2 * (n // 2) ** 2 * head

    saved = sum(block(64) - block(n) for n in lengths) - sum(map(matching, before))
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


def merged_by_hand(model, image, per_layer, expansion):
    """What a DINOv2 on merged tokens outputs for one image, in plain loops over tokens, keys and heads."""
    heads, prefix = model.config.num_attention_heads, 1
    states = model.embeddings(image[None])[0]
    kept, tokens = list(states[:prefix]), list(states[prefix:])
    sizes, members, full = [1] * len(tokens), [[i] for i in range(len(tokens))], list(tokens)
    for layer in model.encoder.layer:
        keys = layer.attention.k_proj(layer.norm1(torch.stack(tokens))).unflatten(1, (heads, -1)).mean(1)
        pairs = []
        for even in range(0, len(tokens), 2):
            alike = [(F.cosine_similarity(keys[even], keys[odd], dim=0), odd) for odd in range(1, len(tokens), 2)]
            pairs.append((*max(alike), even))
        joins = {even: odd for _, odd, even in sorted(pairs, reverse=True)[:per_layer]}
        left = [i for i in range(len(tokens)) if i not in joins]
        groups = [[i, *(even for even, odd in joins.items() if odd == i)] for i in left]
        tokens = [sum(sizes[i] * tokens[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
        members = [[m for i in group for m in members[i]] for group in groups]
        sizes = [sum(sizes[i] for i in group) for group in groups]
        before, states = tokens, attend_by_hand(layer, torch.stack([*kept, *tokens]), [*[1] * prefix, *sizes], heads)
        kept, tokens = list(states[:prefix]), list(states[prefix:])
        for group, old, new in zip(members, before, tokens, strict=True):
            for i in group:
                full[i] = new if expansion == "nearest" else full[i] + new - old
    return model.layernorm(torch.stack([*kept, *full]))


def attend_by_hand(layer, states, sizes, heads):
    """One block, its attention proportional to sizes."""
    normed, attention = layer.norm1(states), layer.attention
    query, key, value = (
        p(normed).unflatten(1, (heads, -1)) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weight = torch.einsum("qhd,khd->hqk", query, key).div(query.shape[-1] ** 0.5).exp() * torch.tensor(sizes)
    mixed = torch.einsum("hqk,khd->qhd", weight / weight.sum(-1, keepdim=True), value).flatten(1)
    states = states + layer.layer_scale1(attention.o_proj(mixed))
    return states + layer.layer_scale2(layer.mlp(layer.norm2(states)))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    config = {k: v for k, v in TINY_DINOV2.items() if k != "model_type"} | {"initializer_range": 0.2}
    return Dinov2Model(Dinov2Config(**config)).eval()


@torch.no_grad()
@pytest.mark.parametrize("expansion", ["nearest", "delta"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_proportional_and_keys_are_those_of_attention(backbone, expansion, attention):
    images = noise(2, 3, 32, 32)
    fast = merge_in_layers(backbone, 9, expansion)
    fast.set_attn_implementation(attention)
    found = fast(images).last_hidden_state
    exact = copy.deepcopy(backbone).double()
    for image, ours in zip(images.double(), found, strict=True):
        torch.testing.assert_close(ours.double(), merged_by_hand(exact, image, 9, expansion), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("expansion", ["nearest", "delta"])
def test_images_of_a_batch_do_not_see_each_other_and_one_graph_is_enough(backbone, expansion):
    images, fast = noise(3, 3, 32, 32), merge_in_layers(backbone, 9, expansion)
    found = fast(images).last_hidden_state
    for number in range(3):
        alone = fast(images[number, None]).last_hidden_state[0]
        torch.testing.assert_close(found[number], alone, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="eager")(images).last_hidden_state
    torch.testing.assert_close(compiled, found)


@torch.no_grad()
def test_the_change_is_added_to_each_token(backbone):
    images = noise(2, 3, 32, 32)
    still = copy.deepcopy(backbone)
    for layer in still.encoder.layer:
        layer.layer_scale1.lambda1.zero_()
        layer.layer_scale2.lambda1.zero_()
    fast = merge_in_layers(still, 9, "delta")
    states = fast(images, output_hidden_states=True).hidden_states
    for state in states[1:-1]:
        torch.testing.assert_close(state, states[0], rtol=1e-5, atol=1e-5)


def test_attention_without_a_key_projection_is_refused(backbone):
    with pytest.raises(ValueError, match="LayerNorm has no projection named k_proj or key"):
        KeyMeans(backbone.layernorm)


def test_windows_and_saving_are_refused(depth, tmp_path):
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4)
    with pytest.raises(ValueError, match="token merging leaves no grid of tokens"):
        merge_in_layers(SwinModel(config), 4)
    with pytest.raises(ValueError, match=r"hf_tokaccel\.accelerate"):
        merge_in_layers(depth, 4).save_pretrained(tmp_path)
    assert type(ta.to_native(merge_in_layers(depth, 4))) is DepthAnythingForDepthEstimation
