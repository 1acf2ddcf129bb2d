"""Adaptive clusters against reference tensors and against plain loops in float64."""

import pytest
import torch
import torch.nn.functional as F
from test_functional import Refuses, assert_near, load_goldens
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_tokaccel.clustering import adaptive
from hf_tokaccel.functional import (
    TokenRegions,
    append_sizes,
    average_tokens,
    partition_tokens,
    reconstruct_regions,
    size_bias,
)
from hf_tokaccel.measure.flops import flop_counter

GOLDENS = load_goldens("adaptive_partition")


@pytest.fixture(params=["scattered", "pulled"])
def form(request, monkeypatch):
    """Sums as a CPU forms them, and as a GPU does, walked here."""
    if request.param == "pulled":
        monkeypatch.setattr(adaptive, "pulls", lambda x: not torch.compiler.is_exporting())
    return request.param


def tokens_of(batch=2, count=60, width=16, seed=0):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def reference_rows(keys, count, share, rows=None):
    """One image (N, K), as loops: sets of tokens in order, joined by Ward's cost."""
    keys = keys.double()
    regions = [[i] for i in range(len(keys))]
    if rows is not None:
        regions = [(rows == j).nonzero().flatten().tolist() for j in range(int(rows.max()) + 1)]
    while len(regions) > count:
        joined = min(len(regions) - count, max(1, int(share * len(regions))))
        means = [keys[members].mean(0) for members in regions]

        def cost(i, j, means=means, regions=regions):
            a, b = len(regions[i]), len(regions[j])
            return (a * b / (a + b) * (means[i] - means[j]).square().sum()).item()

        odd = range(1, len(regions), 2)
        choices = [(min((cost(i, j), j) for j in odd), i) for i in range(0, len(regions), 2)]
        goes = {i: j for (_, j), i in sorted(choices, key=lambda c: (c[0][0], c[1]))[:joined]}
        for i, j in goes.items():
            regions[j] = regions[j] + regions[i]
        regions = [members for place, members in enumerate(regions) if place not in goes]
    found = torch.empty(len(keys), dtype=torch.int64)
    for j, members in enumerate(regions):
        found[members] = j
    return found


@pytest.mark.parametrize("case", GOLDENS)
def test_goldens(case, form):
    settings, golden = GOLDENS[case]
    regions = partition_tokens(golden["keys"], settings["count"], share=settings["share"])
    assert torch.equal(regions.rows, golden["rows"])
    assert torch.equal(regions.sizes, golden["sizes"])
    centroids = average_tokens(golden["tokens"], regions)
    assert_near(centroids, golden["centroids"])
    assert_near(average_tokens(golden["keys"], regions), golden["key_centroids"])
    refined, tokens = golden["refined"], golden["tokens"]
    assert_near(reconstruct_regions(refined, regions, tokens=tokens, centroids=centroids), golden["delta"])
    assert_near(reconstruct_regions(refined, regions, expansion="nearest"), golden["copied"])


@pytest.mark.parametrize("case", GOLDENS)
def test_attention_with_sizes_as_a_mask_and_as_a_feature(case):
    settings, golden = GOLDENS[case]
    query, key, value = (golden[name] for name in ("query", "key", "value"))
    bias = size_bias(golden["sizes"], settings["prefix"])
    assert_near(F.scaled_dot_product_attention(query, key, value, attn_mask=bias), golden["attended"])
    longer, wider = append_sizes(query, key, golden["sizes"], settings["prefix"])
    assert longer.shape[-1] % 8 == wider.shape[-1] % 8 == 0
    scale = query.shape[-1] ** -0.5
    assert_near(F.scaled_dot_product_attention(longer, wider, value, scale=scale), golden["attended"])


@pytest.mark.parametrize("count", [1, 7, 31, 59, 60])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_loops_agree(count, share, form):
    keys = tokens_of(seed=count)
    regions = partition_tokens(keys, count, share=share)
    for rows, image in zip(regions.rows, keys, strict=True):
        assert torch.equal(rows, reference_rows(image, count, share))
    counted = torch.stack([row.bincount(minlength=count) for row in regions.rows])
    assert torch.equal(regions.sizes, counted)


def test_a_later_step_goes_on_from_regions(form):
    first, later = tokens_of(seed=1), tokens_of(seed=2)
    begun = partition_tokens(first, 40)
    went_on = partition_tokens(later, 12, rows=begun)
    for rows, image, before in zip(went_on.rows, later, begun.rows, strict=True):
        assert torch.equal(rows, reference_rows(image, 12, 0.2, before))
        for region in range(40):
            assert len(rows[before == region].unique()) == 1


def test_as_many_regions_as_tokens_is_the_identity(form):
    tokens = tokens_of()
    regions = partition_tokens(tokens, 60)
    assert torch.equal(regions.rows, torch.arange(60).expand(2, -1))
    centroids = average_tokens(tokens, regions)
    assert torch.equal(centroids, tokens)
    assert torch.equal(reconstruct_regions(centroids, regions, expansion="nearest"), tokens)
    assert not size_bias(regions.sizes, 1).any()


def test_an_image_of_a_batch_sees_no_other(form):
    keys = tokens_of(batch=4)
    together = partition_tokens(keys, 20)
    for i in range(4):
        alone = partition_tokens(keys[i : i + 1], 20)
        assert torch.equal(together.rows[i : i + 1], alone.rows)


def test_a_common_offset_changes_nothing(form):
    keys = tokens_of()
    shifted = partition_tokens(keys + 1000 * torch.ones(16), 20)
    rounded = (keys + 1000) - 1000  # what float32 itself leaves of the keys
    assert torch.equal(shifted.rows, partition_tokens(rounded, 20).rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    keys = tokens_of().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        regions = partition_tokens(keys, 20)
        centroids = average_tokens(keys, regions)
    assert torch.equal(regions.rows, partition_tokens(keys.float(), 20).rows)
    assert centroids.dtype == dtype
    assert torch.equal(centroids, average_tokens(keys.float(), regions).to(dtype))


def test_no_random_numbers_and_gradients_past_the_choice(form):
    tokens = tokens_of().requires_grad_()
    state = torch.get_rng_state()
    regions = partition_tokens(tokens, 20)
    centroids = average_tokens(tokens, regions)
    rebuilt = reconstruct_regions(2 * centroids, regions, tokens=tokens, centroids=centroids)
    assert torch.equal(state, torch.get_rng_state())
    rebuilt.square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.abs().sum() > 0


def test_both_forms_agree(monkeypatch):
    tokens = tokens_of().requires_grad_()
    found = []
    for pulls in (False, True):
        monkeypatch.setattr(adaptive, "pulls", lambda x, pulls=pulls: pulls)
        first = partition_tokens(tokens, 40, share=0.5)
        regions = partition_tokens(tokens, 17, rows=first, grid=(6, 10), tile=4)
        centroids = average_tokens(tokens, regions)
        rebuilt = reconstruct_regions(2 * centroids, regions, tokens=tokens, centroids=centroids)
        (gradient,) = torch.autograd.grad(rebuilt.square().sum(), tokens)
        found.append((regions.rows, regions.sizes, centroids, rebuilt, gradient))
        assert (regions.order is not None) == pulls
        # What was saved without an order finds it again.
        plain = TokenRegions(regions.rows, regions.sizes)
        assert torch.equal(average_tokens(tokens, plain), centroids)
        assert torch.equal(
            partition_tokens(tokens, 9, rows=plain).rows, partition_tokens(tokens, 9, rows=regions).rows
        )
    for scattered, pulled in zip(*found, strict=True):
        torch.testing.assert_close(pulled, scattered, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_form_of_half_precision_joins_what_is_alike(monkeypatch, dtype):
    """Rounding decides between pairs that are about as good: the sum of costs stays that of the exact form."""
    monkeypatch.setattr(adaptive, "pulls", lambda x: True)
    tokens = (tokens_of(2, 64, 16) + 5).to(dtype)
    spent = []
    for keys in (tokens, tokens.float()):
        first = partition_tokens(keys, 40, share=0.5)
        regions = partition_tokens(keys, 20, rows=first)
        centroids = average_tokens(tokens.float(), regions)
        copied = reconstruct_regions(centroids, regions, expansion="nearest")
        spent.append((copied - tokens.float()).square().sum())
        assert torch.equal(regions.sizes.sum(1), torch.tensor([64, 64]))
        assert torch.equal(regions.rows.sort(1)[0].unique(return_counts=True)[1].sum(), torch.tensor(128))
    assert spent[0] <= 1.02 * spent[1]
    own = average_tokens(tokens, regions)
    assert own.dtype == dtype
    torch.testing.assert_close(own.float(), centroids, atol=0, rtol=2 * torch.finfo(dtype).eps)
    moved = reconstruct_regions(2 * own, regions, tokens=tokens, centroids=own)
    torch.testing.assert_close(
        moved, tokens + own.gather(1, regions.rows[..., None].expand(-1, -1, 16)), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("tile", [None, 8])
def test_nothing_on_a_gpu_changes_from_run_to_run(tile):
    with FakeTensorMode(), torch.no_grad(), Refuses():
        tokens = torch.empty(2, 16 * 12, 32, device="cuda", dtype=torch.bfloat16)
        first = partition_tokens(tokens, 120, grid=None if tile is None else (16, 12), tile=tile)
        regions = partition_tokens(tokens, 50, rows=first)
        centroids = average_tokens(tokens, regions)
        rebuilt = reconstruct_regions(centroids, regions, tokens=tokens, centroids=centroids)
    assert {x.device.type for x in (regions.rows, regions.sizes, centroids, rebuilt)} == {"cuda"}
    assert rebuilt.dtype == centroids.dtype == torch.bfloat16
    with pytest.raises(AssertionError, match="scatter_add"), Refuses():
        partition_tokens(tokens_of(), 20)


def test_ties_go_by_order():
    rows = partition_tokens(torch.zeros(1, 8, 4), 6, share=0.5).rows
    # All costs are 0: the first two of the even places join the first of the odd ones.
    assert rows.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5]]


def test_values_that_are_no_numbers_keep_the_shapes(form):
    keys = tokens_of()
    keys[0, 5] = torch.nan
    regions = partition_tokens(keys, 20)
    assert regions.sizes.sum(1).tolist() == [60, 60]
    assert torch.equal(regions.rows[1], partition_tokens(keys, 20).rows[1])


class Steps(torch.nn.Module):
    def forward(self, tokens):
        first = partition_tokens(tokens, 40, share=0.5)
        regions = partition_tokens(tokens, 17, share=0.5, rows=first, grid=(6, 10), tile=4)
        centroids = average_tokens(tokens, regions)
        rebuilt = reconstruct_regions(2 * centroids, regions, tokens=tokens, centroids=centroids)
        return regions.rows, rebuilt, size_bias(regions.sizes, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the selection of a GPU")
def test_ties_go_by_order_on_a_gpu_too():
    tokens = torch.zeros(3, 1600, 4)
    tokens[1, ::7] = 1
    tokens[2] = tokens_of(1, 1600, 4)
    here, there = partition_tokens(tokens, 784), partition_tokens(tokens.cuda(), 784)
    assert torch.equal(here.rows, there.rows.cpu())


def test_the_form_for_a_gpu_compiles(monkeypatch):
    monkeypatch.setattr(adaptive, "pulls", lambda x: True)
    model = Steps()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        for ours, eager in zip(compiled(tokens_of(seed=seed)), model(tokens_of(seed=seed)), strict=True):
            torch.testing.assert_close(ours, eager, atol=1e-5, rtol=0)


def test_graphs_agree_with_eager_ties_included(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = Steps(), [tokens_of(), torch.zeros(2, 60, 16)]
    compiled = torch.compile(model, fullgraph=True)
    program = torch.export.export(model, (inputs[0],))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "steps.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "steps.onnx")
    for x in inputs:
        rows, rebuilt, bias = model(x)
        by_onnx = [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: x.numpy()})]
        for other in (compiled(x), program.module()(x), by_onnx):
            assert torch.equal(other[0], rows)
            torch.testing.assert_close(other[1], rebuilt, atol=1e-5, rtol=0)
            torch.testing.assert_close(other[2], bias, atol=1e-6, rtol=0)


def test_tiles_keep_regions_local(form):
    keys = tokens_of(count=16 * 16)
    rows = partition_tokens(keys, 192, grid=(16, 16), tile=4).rows[0]
    tile = (torch.arange(16)[:, None] // 4 * 4 + torch.arange(16) // 4).flatten()
    spread = [len(tile[rows == region].unique()) for region in range(192)]
    # One round of a fifth and a bit: the second round's groups have moved on by what the first one joined.
    assert max(spread) <= 2
    assert torch.equal(rows.unique(), torch.arange(192))


def test_one_tile_of_all_tokens_compares_all_with_all(form):
    keys = tokens_of(count=64)
    rows = partition_tokens(keys, 20, grid=(8, 8), tile=8).rows
    assert torch.equal(rows, partition_tokens(keys, 20).rows)


def test_cost_of_tiles_grows_linearly():
    def flops(side):
        with FakeTensorMode(), flop_counter() as counter:
            keys = torch.empty(1, side * side, 8)
            partition_tokens(keys, side * side // 2, grid=(side, side), tile=8)
        return counter.get_total_flops()

    assert flops(128) <= 16 * flops(32)  # a little less, since the last group of a round is filled up


BAD = {
    "count": {"count": 61},
    "share": {"count": 20, "share": 0.6},
    "tile": {"count": 20, "tile": 3, "grid": (6, 10)},
    "grid": {"count": 20, "tile": 4, "grid": (6, 9)},
    "grid without a tile": {"count": 20, "grid": (6, 10)},
    "rows": {"count": 20, "rows": torch.zeros(2, 60)},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_with_one_that_works(name):
    field = name.partition(" ")[0]
    with pytest.raises(ValueError, match=rf"{field}=.* must be .*, for example {field}="):
        partition_tokens(tokens_of(), **BAD[name])


def test_bad_shapes_are_refused():
    tokens = tokens_of()
    regions = partition_tokens(tokens, 20)
    with pytest.raises(ValueError, match=r"keys.shape=.*must be"):
        partition_tokens(tokens[0], 20)
    with pytest.raises(ValueError, match="1 to 20, the number of regions"):
        partition_tokens(tokens, 21, rows=regions)
    with pytest.raises(ValueError, match=r"tokens.shape=.*must be"):
        average_tokens(tokens[:, 1:], regions)
    with pytest.raises(ValueError, match=r"refined.shape=.*must be"):
        reconstruct_regions(tokens, regions, expansion="nearest")
    with pytest.raises(ValueError, match="where tokens and centroids are not given"):
        reconstruct_regions(average_tokens(tokens, regions), regions)
    with pytest.raises(ValueError, match="expansion='soft'"):
        reconstruct_regions(average_tokens(tokens, regions), regions, expansion="soft")
    assert isinstance(regions, TokenRegions)
