"""FLOPs are those that a hand computes, whatever PyTorch's own counter says of an operator."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry
from transformers import BeitConfig, BeitModel

from hf_tokaccel.measure.flops import count_gflops, flop_counter, gflops_of_shape

aten = torch.ops.aten


def zeros(*shape):
    return torch.zeros(shape)


def attention():
    return F.scaled_dot_product_attention(zeros(3, 2, 10, 8), zeros(3, 2, 7, 8), zeros(3, 2, 7, 5))


# A sum of n products is 2 n FLOPs.
PRODUCTS = {
    "matrices": (lambda: zeros(3, 5) @ zeros(5, 7), 2 * 3 * 5 * 7),
    "batched matrices": (lambda: zeros(4, 3, 5) @ zeros(4, 5, 7), 4 * 2 * 3 * 5 * 7),
    "broadcast matrices": (lambda: zeros(4, 2, 3, 5) @ zeros(2, 5, 7), 4 * 2 * 2 * 3 * 5 * 7),
    "einsum": (lambda: torch.einsum("bik,bjk->bij", zeros(4, 3, 5), zeros(4, 7, 5)), 4 * 2 * 3 * 5 * 7),
    "batched matrices, added": (lambda: torch.baddbmm(zeros(4, 3, 7), zeros(4, 3, 5), zeros(4, 5, 7)), 4 * 210),
    "linear layer": (lambda: F.linear(zeros(4, 3, 5), zeros(7, 5)), 4 * 2 * 3 * 5 * 7),
    "linear layer with bias": (lambda: F.linear(zeros(4, 3, 5), zeros(7, 5), zeros(7)), 4 * 2 * 3 * 5 * 7),
    "convolution": (
        lambda: F.conv2d(zeros(2, 3, 9, 8), zeros(6, 3, 3, 2), zeros(6), stride=2),
        2 * 2 * (6 * 4 * 4) * (3 * 3 * 2),
    ),
    "convolution in groups, padded": (
        lambda: F.conv2d(zeros(2, 6, 9, 8), zeros(4, 3, 3, 3), padding=1, groups=2),
        2 * 2 * (4 * 9 * 8) * (3 * 3 * 3),
    ),
    "convolution of a clip": (
        lambda: F.conv3d(zeros(2, 3, 4, 8, 8), zeros(5, 3, 2, 4, 4), stride=(2, 4, 4)),
        2 * 2 * (5 * 2 * 2 * 2) * (3 * 2 * 4 * 4),
    ),
    "transposed convolution": (
        # Each value of the input meets the kernels of all channels of the output.
        lambda: F.conv_transpose2d(zeros(2, 6, 5, 4), zeros(6, 3, 2, 2), zeros(3), stride=2),
        2 * 2 * (6 * 5 * 4) * (3 * 2 * 2),
    ),
    "attention": (attention, 2 * 3 * 2 * (10 * 7 * 8 + 10 * 7 * 5)),
}
REST = {
    "resizing": lambda: [
        F.interpolate(zeros(1, 3, 8, 8), scale_factor=2, mode=mode)
        for mode in ("nearest", "bilinear", "bicubic", "area")
    ],
    "norms": lambda: (F.layer_norm(zeros(4, 8), (8,)), F.group_norm(zeros(4, 8, 3), 2)),
    "activations": lambda: (F.gelu(zeros(4, 8)), F.softmax(zeros(4, 8), -1), F.silu(zeros(4, 8))),
    "pooling": lambda: (F.avg_pool2d(zeros(1, 3, 8, 8), 2), F.adaptive_avg_pool2d(zeros(1, 3, 8, 8), 3)),
    "sampling": lambda: F.grid_sample(zeros(1, 3, 8, 8), zeros(1, 4, 4, 2), align_corners=False),
    "sums": lambda: (zeros(4, 8).sum(), zeros(4, 8) * zeros(4, 8), zeros(4, 8).cumsum(0)),
    "gathering": lambda: (zeros(4, 8)[[0, 2]], F.embedding(torch.tensor([1, 3]), zeros(4, 8)), zeros(9).topk(3)),
}
ALL = {**PRODUCTS, **{name: (function, 0) for name, function in REST.items()}}
MODES = {"inference": torch.inference_mode, "no gradients": torch.no_grad, "gradients": torch.enable_grad}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_flops_are_those_computed_by_hand(name, mode):
    function, flops = ALL[name]
    with MODES[mode](), flop_counter() as counter:
        function()
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize("name", ALL)
def test_formulas_of_torch_change_nothing(name, monkeypatch):
    """Of operators that PyTorch counts today, of those that it may count tomorrow, and of what ours are made of."""
    operators = [
        *flop_registry,
        *(aten.linear, aten.matmul, aten.einsum, aten.conv2d, aten.conv3d, aten.conv_transpose2d),
        *(aten.scaled_dot_product_attention, aten._scaled_dot_product_attention_math),
        *(aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.native_layer_norm),
        *(aten.native_group_norm, aten.gelu, aten._softmax, aten.silu, aten.mul, aten.sum, aten.grid_sampler_2d),
    ]
    for operator in operators:
        monkeypatch.setitem(flop_registry, operator, lambda *_, **__: 10**6)
    function, flops = ALL[name]
    with torch.inference_mode(), flop_counter() as counter:
        function()
    assert counter.get_total_flops() == flops


def test_count_is_per_image():
    weight = zeros(6, 3, 3, 3)
    assert count_gflops(lambda images: F.conv2d(images, weight), zeros(5, 3, 10, 8)) == pytest.approx(
        2 * (6 * 8 * 6) * (3 * 3 * 3) / 1e9
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["bilinear", "nearest", "bicubic"])
def test_a_formula_besides_counts_in_every_mode(mode, kind):
    """Within inference mode the counter meets operators in another form."""
    others = {getattr(aten, f"upsample_{kind}2d"): lambda *_, out_shape, **__: out_shape.numel()}
    with MODES[mode](), flop_counter(others) as counter:
        F.conv2d(F.interpolate(zeros(1, 3, 8, 8), scale_factor=2, mode=kind), zeros(4, 3, 16, 16))
    assert counter.get_total_flops() == 3 * 16 * 16 + 2 * 4 * 3 * 16 * 16


def test_counts_belong_to_modules():
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
    with torch.no_grad(), flop_counter() as counter:
        model(zeros(3, 5))
    assert counter.get_flop_counts()["Sequential.0"] == {aten.addmm: 2 * 3 * 5 * 7}


def test_what_is_counted_leaves_nothing_that_a_model_run_later_would_meet():
    """BEiT keeps the places of its biases by the size of the image, for all models."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BeitConfig(image_size=36, patch_size=4, use_relative_position_bias=True, **sizes)
    images = torch.randn(1, 3, 36, 36)
    gflops_of_shape(BeitModel(config), (36, 36))
    count_gflops(BeitModel(config).eval(), images)
    BeitModel(config)(images).last_hidden_state.sum().backward()
