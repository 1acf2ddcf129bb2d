"""Attention that weighs clusters by their sizes, as every attention function computes it."""

import pytest
import torch
import torch.nn.functional as F
from family import ACCEL
from test_vit import ViTTester
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, ViTModel
from transformers.integrations import flex_attention as flex

import hf_tokaccel as ta
from hf_tokaccel.hosts import sizes

FLASH, OTHER = "flash_of_tests", "other_of_tests"
ADAPTIVE = {"cluster_after": 1, "clusters": 0.3}
SIZED_GRID = {**ACCEL, "size_attention": True}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """What a kernel of flash attention takes: no mask, and heads as wide as a multiple of 8."""
    assert attention_mask is None
    assert query.shape[-1] % 8 == 0
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = F.scaled_dot_product_attention(query, key, value, scale=scaling)
    return output.transpose(1, 2), None


@pytest.fixture(scope="module")
def model():
    AttentionInterface.register(FLASH, flash)
    AttentionInterface.register(OTHER, flash)
    torch.manual_seed(0)
    return ViTModel(ViTTester().config()).eval().to(DEVICE)


def attended(model, setting, name, dtype):
    """Queries, keys, values and results (B, heads, L, width) of the first block on clusters, and the log of sizes."""
    fast = ta.accelerate(model, setting).to(dtype)
    fast.config._attn_implementation = name
    attention, seen = fast.layers[1].attention, {}
    for part in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, part).register_forward_hook(lambda m, i, o, part=part: seen.update({part: o}))
    attention.o_proj.register_forward_pre_hook(lambda m, i: seen.update(o_proj=i[0]))
    with ta.observe_clusters() as observed, torch.no_grad():
        fast(ViTTester().images().to(DEVICE, dtype))
    heads = [seen[part].unflatten(2, (2, -1)).transpose(1, 2) for part in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return heads, F.pad(observed[0].clusters.sizes(), (1, 0), value=1.0).log()


@pytest.mark.parametrize("setting", [ADAPTIVE, SIZED_GRID], ids=["adaptive", "grid"])
@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention", FLASH])
def test_each_key_weighs_as_many_times_as_it_stands_for_tokens(model, name, setting, monkeypatch):
    if DEVICE == "cpu":  # flex attention as written, without the kernel
        monkeypatch.setattr(flex, "compile_friendly_flex_attention", lambda *a, training, **k: flex_attention(*a, **k))
        monkeypatch.setattr(sizes, "_check_flex", lambda device: None)
    dtype = torch.bfloat16 if name == FLASH and DEVICE == "cuda" else torch.float32
    (query, key, value, actual), logs = attended(model, setting, name, dtype)
    query, key, value = query.double(), key.double(), value.double()
    logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    expected = (logits + logs[:, None, None].double()).softmax(-1) @ value
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    assert (expected - logits.softmax(-1) @ value).abs().max() > 0.1


def test_an_attention_function_that_is_not_known_is_refused_with_sizes_only(model):
    fast, images = ta.accelerate(model, ADAPTIVE), ViTTester().images().to(DEVICE)
    fast.config._attn_implementation = OTHER
    message = r"'other_of_tests' is not valid with size_attention=True.*'sdpa'; or size_attention=False"
    with pytest.raises(ValueError, match=message):
        fast(images)
    plain = ta.accelerate(fast, {**ADAPTIVE, "size_attention": False})
    assert plain.config._attn_implementation == OTHER
    with torch.no_grad():
        assert plain(images).last_hidden_state.isfinite().all()


def test_flex_attention_is_refused_on_a_cpu():
    fast = ta.accelerate(ViTModel(ViTTester().config()).eval(), {**ADAPTIVE, "cluster_after": 0})
    fast.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"'flex_attention' is not valid .*on a CPU.*attn_implementation='sdpa'"):
        fast(ViTTester().images())


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("choice", [True, False], ids=["choice", "added"])
def test_sizes_add_to_a_mask_of_the_host(model, name, choice):
    fast = ta.accelerate(model, ADAPTIVE)
    fast.config._attn_implementation = name
    module, generator = fast.layers[1].attention, torch.Generator().manual_seed(0)
    shapes = [(1, 2, 5, 16)] * 3 + [(1, 1, 5, 5)]
    query, key, value, mask = (torch.randn(shape, generator=generator) for shape in shapes)
    bias, keep = torch.tensor([1.0, 3.0, 2.0, 1.0, 9.0]).log()[None, None, None], mask > -0.5

    def attend(mask):
        options, inputs = {"scaling": 0.25, "dropout": 0.0, "is_causal": False}, sizes.ClusterInputs(bias, None)
        return sizes.call_with_inputs(sizes.sized_attention, inputs, (module, query, key, value, mask), options)[0]

    actual = attend(keep if choice else mask)
    fast.config._attn_implementation = FLASH
    with pytest.raises(ValueError, match=r"attention_mask is not valid with a flash kernel.*'sdpa'"):
        attend(mask)
    logits = query @ key.transpose(2, 3) * 0.25 + bias
    logits = logits.masked_fill(~keep, -torch.inf) if choice else logits + mask
    torch.testing.assert_close(actual.transpose(1, 2), logits.softmax(-1) @ value)


def test_sizes_are_those_of_the_pass_and_leave_no_trace(model):
    """A block outside of the clusters, and the configuration as others see it, know nothing of them."""
    fast = ta.accelerate(model, {**ADAPTIVE, "reconstruct_after": 2})
    names = [layer.attention.config._attn_implementation for layer in fast.layers]
    with torch.no_grad():
        fast(ViTTester().images().to(DEVICE))
    assert [layer.attention.config._attn_implementation for layer in fast.layers] == names
    assert names == [model.config._attn_implementation] * 4
    changed = [type(layer.attention.config) is sizes.SizedConfig for layer in fast.layers]
    assert changed == [False, True, False, False]
    for plain in (ta.to_native(fast), ta.accelerate(fast, None)):
        assert not any(type(getattr(part, "config", None)) is sizes.SizedConfig for part in plain.modules())
