"""The method against the released tensors and against a slow, obvious float64 reference."""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_tokaccel.clustering import constants, functional
from hf_tokaccel.clustering import tiling as _tiling
from hf_tokaccel.functional import (
    ReconstructionPlan,
    cluster_tokens,
    plan_reconstruction,
    reconstruct_tokens,
)
from hf_tokaccel.measure.flops import flop_counter


def load_goldens(name):
    with safe_open(Path(__file__).parents[1] / "goldens" / f"{name}.safetensors", "pt") as file:
        cases = {}
        # Sorted: the order of a file's metadata changes from process to process, and parallel ones must agree.
        for case, settings in sorted(file.metadata().items()):
            if case.startswith(("_", "format")):
                continue
            keys = [key for key in file.keys() if key.startswith(f"{case}/")]  # noqa: SIM118
            tensors = {key.removeprefix(f"{case}/"): file.get_tensor(key) for key in keys}
            if tensors:
                cases[case] = (json.loads(settings), tensors)
    return cases


CLUSTERING = load_goldens("expedit_clustering")
RECONSTRUCTION = load_goldens("expedit_reconstruction")
RECONSTRUCTION_CASES = [(case, k) for case, (settings, _) in RECONSTRUCTION.items() for k in settings["k"]]


def assert_near(actual, expected, tolerance=1e-5):
    """Within `tolerance` of the expected tensor's largest magnitude."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max().item()
    limit = tolerance * expected.double().abs().max().item()
    assert error <= limit, f"{error:.3g} exceeds {limit:.3g}"


# --- The reference: loops and dense tensors in float64, written from the specification
# -------------------------------------


def reference_labels(grid, cluster_grid):
    """Row and column of every token's initial cluster: the index map resized to the token grid."""
    sides = []
    for size, count in zip(grid, cluster_grid, strict=True):
        index = torch.arange(count, dtype=torch.float32)[None, None, :, None]
        sides.append(F.interpolate(index, size=(size, 1), mode="nearest").flatten().long())
    return sides


def reference_near(grid, cluster_grid, window):
    near = torch.zeros(grid[0] * grid[1], cluster_grid[0] * cluster_grid[1], dtype=torch.bool)
    rows, cols = reference_labels(grid, cluster_grid)
    for (y, a), (x, b) in itertools.product(enumerate(rows.tolist()), enumerate(cols.tolist())):
        for i, j in itertools.product(range(cluster_grid[0]), range(cluster_grid[1])):
            near[y * grid[1] + x, i * cluster_grid[1] + j] = abs(i - a) <= window // 2 and abs(j - b) <= window // 2
    return near


def reference_pool(x, grid, cluster_grid):
    maps = x.unflatten(1, grid)
    centroids = []
    for i, j in itertools.product(range(cluster_grid[0]), range(cluster_grid[1])):
        top, bottom = i * grid[0] // cluster_grid[0], -(-(i + 1) * grid[0] // cluster_grid[0])
        left, right = j * grid[1] // cluster_grid[1], -(-(j + 1) * grid[1] // cluster_grid[1])
        centroids.append(maps[:, top:bottom, left:right].mean((1, 2)))
    return torch.stack(centroids, 1)


def reference_distances(x, s):
    return (x[:, :, None] - s[:, None]).square().sum(-1)


def reference_scale(x, nearest):
    """4 over the median distance to the nearest centroid, of the tokens that have one; (B, 1, 1)."""
    norms = (x - x.mean(1, keepdim=True)).square().sum(-1)
    medians = [image[image > 1e-6 * norm].median() for image, norm in zip(nearest, norms, strict=True)]
    return 4 / torch.stack(medians)[:, None, None]


def reference_cluster(tokens, grid, cluster_grid, iterations=5, inverse_temperature=0.02, window=5, keys=None):
    x = tokens.double()
    k = (tokens if keys is None else keys).double()
    near = reference_near(grid, cluster_grid, window)
    s, ks = reference_pool(x, grid, cluster_grid), reference_pool(k, grid, cluster_grid)
    scale = inverse_temperature
    for step in range(iterations):
        d = reference_distances(k, ks).detach()
        if inverse_temperature == "auto" and step == 0:
            scale = reference_scale(k, d.masked_fill(~near, torch.inf).amin(-1))
        a = (-scale * d).masked_fill(~near, -torch.inf).softmax(-1)
        a = a / a.sum(1, keepdim=True).clamp(min=1e-16)
        s, ks = a.transpose(1, 2) @ x, a.transpose(1, 2) @ k
    return s, ks


def reference_weights(x, s, neighbors, inverse_temperature=0.02, normalization="l2", near=None):
    """(B, N, M) weights of the soft expansion."""
    d = reference_distances(x.double(), s.double())
    if near is not None:
        d = d.masked_fill(~near, torch.inf)
    scale = inverse_temperature
    if inverse_temperature == "auto":
        scale = reference_scale(x.double(), d.detach().amin(-1))
    w = torch.exp(-scale * (d - d.amin(-1, keepdim=True)))
    if 0 < neighbors < s.shape[1]:
        w = w * (d <= d.sort(-1)[0][..., neighbors - 1 : neighbors] * (1 + 1e-9))
    norm = w.sum(-1, keepdim=True) if normalization == "l1" else w.square().sum(-1, keepdim=True).sqrt()
    return w / norm


def dense_weights(plan, count):
    """(B, N, M) from a plan, through the public function."""
    eye = torch.eye(count, dtype=plan.weights.dtype).expand(plan.indices.shape[0], -1, -1)
    return reconstruct_tokens(eye, ReconstructionPlan(plan.indices, plan.weights))


def make_tokens(batch, grid, channels, seed=0, noise=0.5):
    """Smooth maps plus noise: neighbours resemble each other, and no two distances tie."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 3, 4, generator=generator)
    maps = F.interpolate(coarse, size=grid, mode="bilinear", align_corners=True)
    return maps.flatten(2).transpose(1, 2) + noise * torch.randn(
        batch, grid[0] * grid[1], channels, generator=generator
    )


class Refuses(TorchDispatchMode):
    """What a GPU adds up in an order that changes from run to run."""

    NAMES = ("scatter_add", "scatter_reduce", "index_add", "index_reduce", "kthvalue", "median", "bincount", "histc")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        assert name not in self.NAMES, name
        assert name not in ("index_put", "_index_put_impl", "put") or not any(a is True for a in args[3:]), name
        assert name != "cumsum" or not args[0].is_floating_point(), name
        return func(*args, **(kwargs or {}))


# --- Released tensors
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CLUSTERING)
@pytest.mark.parametrize("name", ["init_centroids", "clusters_iter1", "clusters"])
def test_clustering_golden(case, name):
    settings, tensors = CLUSTERING[case]
    total = settings["n_iters"]
    clusters = cluster_tokens(
        tensors["input"].flatten(2).transpose(1, 2),
        tuple(settings["grid"]),
        tuple(settings["clusters"]),
        iterations={"init_centroids": 0, "clusters_iter1": min(1, total), "clusters": total}[name],
        inverse_temperature=settings["temperature"],
        window=settings["window_size"],
    )
    assert_near(clusters.centroids, tensors[name])
    assert clusters.key_centroids is clusters.centroids


@pytest.mark.parametrize("case", CLUSTERING)
def test_labels_golden(case):
    settings, tensors = CLUSTERING[case]
    tokens = tensors["input"].flatten(2).transpose(1, 2)
    plan = plan_reconstruction(tokens, tensors["clusters"], expansion="nearest")
    assert torch.equal(plan.indices[..., 0], tensors["hard_labels"])
    (height, width), (_, columns) = settings["grid"], settings["clusters"]
    rows = _tiling.initial_labels(height, settings["clusters"][0], torch.device("cpu"))
    cols = _tiling.initial_labels(width, columns, torch.device("cpu"))
    labels = (rows[:, None] * columns + cols).flatten()
    assert torch.equal(labels.expand_as(tensors["init_labels"]), tensors["init_labels"])


def golden_output(case, neighbors):
    settings, tensors = RECONSTRUCTION[case]
    tokens, centroids = tensors["feat_before"], tensors["feat_after"]
    plan = plan_reconstruction(tokens, centroids, neighbors=neighbors, inverse_temperature=settings["temperature"])
    suffix = "all" if neighbors < 0 else neighbors
    return (
        plan,
        reconstruct_tokens(tensors["refined"], plan),
        tensors[f"out_k{suffix}"],
        tensors.get(f"attention_k{suffix}"),
    )


@pytest.mark.parametrize(("case", "neighbors"), [c for c in RECONSTRUCTION_CASES if "underflow" not in c[0]])
def test_reconstruction_golden(case, neighbors):
    plan, output, expected, attention = golden_output(case, neighbors)
    assert_near(output, expected)
    if attention is not None:
        assert_near(dense_weights(plan, attention.shape[-1]), attention)


@pytest.mark.parametrize(("case", "neighbors"), [c for c in RECONSTRUCTION_CASES if "underflow" in c[0]])
def test_reconstruction_underflow_golden(case, neighbors):
    # The released exponential is not shifted: below exp(-27.6) = 1e-12 the eps of the normalisation shrinks the
    # output, and below exp(-103) it is zero. There we differ on purpose; the agreement is exact where the eps does not
    # bite.
    settings, tensors = RECONSTRUCTION[case]
    plan, output, expected, _ = golden_output(case, neighbors)
    nearest = reference_distances(tensors["feat_before"].double(), tensors["feat_after"].double()).amin(-1)
    agree = settings["temperature"] * nearest < 27
    assert 0 < agree.sum() < agree.numel(), "the case must hold both kinds of rows"
    assert_near(output[agree], expected[agree])
    assert torch.isfinite(output).all()
    weights = dense_weights(plan, tensors["feat_after"].shape[1])
    torch.testing.assert_close(weights.norm(dim=-1), torch.ones(weights.shape[:2]))
    assert_near(weights, reference_weights(tensors["feat_before"], tensors["feat_after"], neighbors, 1.0), 1e-4)


@pytest.mark.parametrize("case", [case for case, (_, tensors) in RECONSTRUCTION.items() if "out_naive" in tensors])
def test_nearest_golden(case):
    _, tensors = RECONSTRUCTION[case]
    plan = plan_reconstruction(tensors["feat_before"], tensors["feat_after"], expansion="nearest")
    assert torch.equal(plan.indices[..., 0], tensors["hard_labels"])
    assert torch.equal(reconstruct_tokens(tensors["refined"], plan), tensors["out_naive"])


# --- Every path against the reference
# -----------------------------------------------------------------------------------

# batch, grid, cluster grid, window, channels
SHAPES = [
    (2, (12, 12), (8, 8), 7, 8),  # Swin's window
    (1, (14, 14), (10, 10), 5, 12),  # SAM's window
    (2, (24, 20), (17, 14), 5, 24),
    (1, (20, 26), (14, 18), 7, 48),
    (3, (22, 30), (28, 12), 5, 8),  # KITTI: more cluster rows than token rows
    (1, (9, 31), (5, 31), 3, 6),
    (2, (7, 5), (7, 5), 1, 4),
    (1, (16, 16), (3, 4), 3, 5),
    (1, (5, 40), (2, 29), 9, 8),
    (1, (10, 10), (13, 13), 3, 8),
    (1, (6, 6), (1, 1), 5, 4),
    (1, (22, 22), (15, 16), 3, 96),
]


@pytest.mark.parametrize(("batch", "grid", "cluster_grid", "window", "channels"), SHAPES)
@pytest.mark.parametrize("inverse_temperature", ["fixed", "auto"])
def test_clustering_reference(batch, grid, cluster_grid, window, channels, inverse_temperature):
    tokens = make_tokens(batch, grid, channels)
    if inverse_temperature == "fixed":
        inverse_temperature = 2 / channels
    expected, _ = reference_cluster(tokens, grid, cluster_grid, 3, inverse_temperature, window)
    settings = {"iterations": 3, "inverse_temperature": inverse_temperature, "window": window}
    if inverse_temperature == "auto" and min(c - g for c, g in zip(cluster_grid, grid, strict=True)) >= 0:
        pytest.skip("every token is its own cluster: the scale is zero and falls back to its floor")
    assert_near(cluster_tokens(tokens, grid, cluster_grid, **settings).centroids, expected)
    exact = cluster_tokens(tokens.double(), grid, cluster_grid, **settings).centroids
    assert exact.dtype == torch.float64
    assert_near(exact, expected, 1e-10)


GROUPS = [(2, 3), (4, 4), (5, 2), (1, 6), (30, 4), (3, 30), (30, 30)]


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize(("rows", "cols"), GROUPS)
@pytest.mark.parametrize(("grid", "cluster_grid"), [((13, 17), (9, 12)), ((8, 19), (11, 6))])
@pytest.mark.parametrize("window", [1, 5, 7])
def test_any_tiling_is_exact(monkeypatch, gram, rows, cols, grid, cluster_grid, window):
    axes = [_tiling.make_axis(grid[i], cluster_grid[i], window // 2, group) for i, group in enumerate((rows, cols))]
    monkeypatch.setattr(functional, "choose_tiling", lambda *args, **kwargs: _tiling.Tiling(*axes, gram))
    tokens = make_tokens(2, grid, 6)
    expected, _ = reference_cluster(tokens, grid, cluster_grid, 2, 0.3, window)
    clusters = cluster_tokens(tokens, grid, cluster_grid, iterations=2, inverse_temperature=0.3, window=window)
    assert_near(clusters.centroids, expected)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("grid", "cluster_grid", "window"), [((12, 12), (8, 8), 7), ((20, 26), (14, 18), 5)])
def test_the_form_for_a_gpu(monkeypatch, grid, cluster_grid, window, batch):
    choose = _tiling.choose_tiling
    chosen = []

    def choose_for_gpu(*args, **kwargs):
        args = [*args[:5], False, *args[6:]]
        chosen.append(choose(*args, **kwargs))
        return chosen[-1]

    monkeypatch.setattr(functional, "choose_tiling", choose_for_gpu)
    smallest = functional._smallest
    monkeypatch.setattr(functional, "_smallest", lambda distances, kept, on_cpu: smallest(distances, kept, False))
    tokens = make_tokens(batch, grid, 24)
    for temperature in (0.1, "auto"):
        expected, _ = reference_cluster(tokens, grid, cluster_grid, 3, temperature, window)
        settings = {"inverse_temperature": temperature, "window": window}
        assert_near(cluster_tokens(tokens, grid, cluster_grid, iterations=3, **settings).centroids, expected)
        for where in ({}, {"window": 5, "grid": grid, "cluster_grid": cluster_grid}):
            plan = plan_reconstruction(tokens, expected.float(), inverse_temperature=temperature, **where)
            near = reference_near(grid, cluster_grid, 5) if where else None
            wanted = reference_weights(tokens, expected, 20, temperature, near=near)
            assert_near(dense_weights(plan, expected.shape[1]), wanted)
    assert all(not tiling.gram or tiling.rows.tiles * tiling.cols.tiles == 1 for tiling in chosen)


def test_tables_are_made_once_outside_of_graphs():
    tokens, made = torch.zeros(1, 4, 2), []

    def make(count, device):
        made.append(count)
        return torch.arange(count, device=device)

    with torch.inference_mode():
        first = constants.constant(tokens, make, 5)
    assert constants.constant(tokens, make, 5) is first
    assert made == [5]
    assert not first.is_inference()
    with FakeTensorMode() as mode:
        fake = constants.constant(mode.from_tensor(tokens), make, 5)
    assert isinstance(fake, FakeTensor)
    assert constants.constant(tokens, make, 5) is first
    assert torch.equal(constants.counting(tokens, 9), torch.arange(9))
    assert constants.counting(tokens, 9).data_ptr() == constants.counting(tokens, 12).data_ptr()


def test_both_ways_to_the_smallest_agree():
    distances = torch.randn(1, 1600, 784, generator=torch.Generator().manual_seed(0))
    found = [
        [part.sort(-1).values for part in functional._smallest(distances, 20, on_cpu)] for on_cpu in (True, False)
    ]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_both_products_are_chosen():
    cpu = {"channels": 1024, "iterations": 5, "on_cpu": True}
    assert _tiling.choose_tiling((40, 40), (28, 28), 5, **cpu).gram
    assert _tiling.choose_tiling((40, 40), (28, 28), 5, **cpu).rows.tiles > 1
    assert not _tiling.choose_tiling((128, 128), (16, 16), 5, **cpu).gram
    small = _tiling.choose_tiling((12, 12), (8, 8), 7, **cpu)
    assert small.gram
    assert small.rows.tiles == small.cols.tiles == 1


def test_pooling_lies_within_the_tiles():
    # The first assignment is pooling cut into tiles: no weight may fall outside, whatever the sizes.
    for size, clusters in itertools.product(range(1, 41), range(1, 41)):
        for group in (1, 3, 4):
            axis = _tiling.make_axis(size, clusters, 0, group)
            pooling = _tiling._axis_tables(axis, torch.device("cpu"), torch.float32)[4]
            total = pooling.sum((0, 1)).sum()
            assert abs(total - clusters) < 1e-3, (size, clusters, group)


def test_initial_labels_follow_the_resize():
    for size, count in itertools.product(range(1, 129), range(1, 101)):
        index = torch.arange(count, dtype=torch.float32)[None, None]
        expected = F.interpolate(index, size=size, mode="nearest").flatten().long()
        assert torch.equal(_tiling.initial_labels(size, count, torch.device("cpu")), expected), (size, count)
        assert np.array_equal(_tiling._labels(size, count), expected.numpy()), (size, count)


@pytest.mark.parametrize("neighbors", [1, 3, 20, 49, -1, 10_000])
@pytest.mark.parametrize("normalization", ["l2", "l1"])
@pytest.mark.parametrize("inverse_temperature", [0.3, "auto"])
@pytest.mark.parametrize(
    ("grid", "cluster_grid"), [((12, 12), (8, 8)), ((20, 14), (14, 12)), ((10, 17), (13, 13)), ((16, 15), (12, 11))]
)
def test_plan_reference(grid, cluster_grid, neighbors, normalization, inverse_temperature):
    tokens = make_tokens(2, grid, 8)
    centroids = cluster_tokens(tokens, grid, cluster_grid, inverse_temperature=0.3).centroids
    settings = {"inverse_temperature": inverse_temperature, "normalization": normalization}
    expected = reference_weights(tokens, centroids, neighbors, **settings)
    plan = plan_reconstruction(tokens, centroids, neighbors=neighbors, **settings)
    assert plan.indices.dtype == torch.int64
    assert plan.tokens is None
    assert_near(dense_weights(plan, centroids.shape[1]), expected)


@pytest.mark.parametrize("neighbors", [1, 4, 20, -1])
@pytest.mark.parametrize(
    ("grid", "cluster_grid", "window"),
    [
        ((12, 12), (8, 8), 3),
        ((20, 14), (14, 12), 5),
        ((22, 30), (28, 12), 7),
        ((16, 16), (12, 12), 25),
        ((5, 40), (6, 29), 11),
    ],
)
def test_window_plan_reference(grid, cluster_grid, window, neighbors):
    tokens = make_tokens(2, grid, 8)
    centroids = cluster_tokens(tokens, grid, cluster_grid, inverse_temperature=0.3).centroids
    near = reference_near(grid, cluster_grid, window)
    expected = reference_weights(tokens, centroids, neighbors, 0.3, near=near)
    where = {"grid": grid, "cluster_grid": cluster_grid, "window": window}
    plan = plan_reconstruction(tokens, centroids, neighbors=neighbors, inverse_temperature=0.3, **where)
    assert_near(dense_weights(plan, centroids.shape[1]), expected)
    labels = plan_reconstruction(tokens, centroids, expansion="nearest", **where).indices[..., 0]
    distances = reference_distances(tokens.double(), centroids.double()).masked_fill(~near, torch.inf)
    assert torch.equal(labels, distances.argmin(-1))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("expansion", ["soft", "nearest"])
def test_chunks_do_not_matter(monkeypatch, window, expansion):
    grid, cluster_grid = (20, 14), (14, 12)
    tokens = make_tokens(2, grid, 8)
    centroids = cluster_tokens(tokens, grid, cluster_grid).centroids
    settings = {"window": window, "grid": grid, "cluster_grid": cluster_grid, "expansion": expansion, "neighbors": 4}
    whole = dense_weights(plan_reconstruction(tokens, centroids, **settings), 168)
    monkeypatch.setattr(functional, "CHUNK_ELEMENTS", 168 * 30)
    assert_near(dense_weights(plan_reconstruction(tokens, centroids, **settings), 168), whole, 1e-6)


def test_nearest_searches_all_clusters():
    tokens = make_tokens(2, (20, 14), 8, noise=1.0)
    centroids = cluster_tokens(tokens, (20, 14), (14, 12), inverse_temperature=1.0, window=3).centroids
    plan = plan_reconstruction(tokens, centroids, expansion="nearest")
    distances = reference_distances(tokens.double(), centroids.double())
    assert_near(distances.gather(2, plan.indices)[..., 0], distances.amin(-1))
    assert torch.equal(plan.weights, torch.ones(2, 280, 1))
    window = {"grid": (20, 14), "cluster_grid": (14, 12), "window": 3}
    assert not torch.equal(plan_reconstruction(tokens, centroids, expansion="nearest", **window).indices, plan.indices)


@pytest.mark.parametrize(("grid", "cluster_grid"), [((10, 12), (5, 6)), ((20, 14), (14, 12))])
def test_delta_adds_the_change(grid, cluster_grid):
    tokens = make_tokens(2, grid, 8)
    centroids = cluster_tokens(tokens, grid, cluster_grid).centroids
    refined = centroids + torch.randn(centroids.shape, generator=torch.Generator().manual_seed(1))
    plan = plan_reconstruction(tokens, centroids, neighbors=6, normalization="l2", expansion="delta")
    weights = reference_weights(tokens, centroids, 6, normalization="l1")
    expected = tokens.double() + weights @ (refined - centroids).double()
    assert_near(reconstruct_tokens(refined, plan), expected)
    assert_near(reconstruct_tokens(centroids, plan), tokens, 1e-6)


@pytest.mark.parametrize(("grid", "cluster_grid"), [((10, 12), (5, 6)), ((20, 14), (14, 12))])
def test_keys_are_compared_and_tokens_averaged(grid, cluster_grid):
    tokens, keys = make_tokens(2, grid, 8), make_tokens(2, grid, 5, seed=1)
    clusters = cluster_tokens(tokens, grid, cluster_grid, inverse_temperature=0.3, keys=keys)
    expected, expected_keys = reference_cluster(tokens, grid, cluster_grid, 5, 0.3, keys=keys)
    assert_near(clusters.centroids, expected)
    assert_near(clusters.key_centroids, expected_keys)
    compared = {"keys": keys, "key_centroids": clusters.key_centroids}
    plan = plan_reconstruction(tokens, clusters.centroids, neighbors=7, inverse_temperature=0.3, **compared)
    assert_near(dense_weights(plan, expected.shape[1]), reference_weights(keys, clusters.key_centroids, 7, 0.3))
    pooled = cluster_tokens(tokens, grid, cluster_grid, iterations=0, keys=keys)
    assert_near(pooled.key_centroids, reference_pool(keys.double(), grid, cluster_grid))


def test_auto_temperature_ignores_scale():
    tokens = make_tokens(2, (20, 14), 8)
    tokens[1] *= 3  # one scale per image
    runs = []
    for factor in (1.0, 128.0):  # a power of two rounds nothing
        clusters = cluster_tokens(tokens * factor, (20, 14), (14, 12), inverse_temperature="auto").centroids
        plan = plan_reconstruction(tokens * factor, clusters, inverse_temperature="auto")
        runs.append((clusters / factor, dense_weights(plan, 168)))
    assert_near(runs[1][0], runs[0][0])
    assert_near(runs[1][1], runs[0][1])
    fixed = cluster_tokens(tokens * 128, (20, 14), (14, 12)).centroids / 128
    assert (fixed - runs[0][0]).abs().max() > 1e-2


@pytest.mark.parametrize("norm", [1e2, 1e4])
def test_auto_temperature_ignores_one_huge_token(norm):
    grid, cluster_grid = (20, 14), (14, 12)
    tokens = make_tokens(2, grid, 8)
    planted = tokens.clone()
    planted[0, 77] = norm * F.normalize(torch.ones(8), dim=0)
    runs = []
    for x in (tokens, planted):
        clusters = cluster_tokens(x, grid, cluster_grid, inverse_temperature="auto").centroids
        plan = plan_reconstruction(x, clusters, inverse_temperature="auto", normalization="l1")
        runs.append((clusters, reconstruct_tokens(clusters, plan)))
    (clean, clean_rebuilt), (spoilt, spoilt_rebuilt) = runs
    assert_near(spoilt[1], clean[1], 1e-6)
    # Its clusters move, and so do tokens that were rebuilt from these; with the mean all 280 would.
    moved = (spoilt[0] - clean[0]).norm(dim=-1) > 0.02 * clean[0].norm(dim=-1).mean()
    assert moved.sum() <= 25
    changed = (spoilt_rebuilt[0] - clean_rebuilt[0]).norm(dim=-1) > 0.02 * clean_rebuilt[0].norm(dim=-1).mean()
    assert changed.sum() <= 56


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_constant_images_stay_finite(value):
    tokens = torch.full((1, 280, 8), value)
    for temperature in ("auto", 0.02):
        centroids = cluster_tokens(tokens, (20, 14), (14, 12), inverse_temperature=temperature).centroids
        torch.testing.assert_close(centroids, torch.full((1, 168, 8), value))
        plan = plan_reconstruction(tokens, centroids, inverse_temperature=temperature, normalization="l1")
        torch.testing.assert_close(reconstruct_tokens(centroids, plan), tokens)


def test_empty_cluster_is_zero_in_every_tiling(monkeypatch):
    settings, tensors = CLUSTERING["emptycluster2x6_1x3_w5_i5_t1"]
    tokens = tensors["input"].flatten(2).transpose(1, 2)
    empty = tensors["clusters"].abs().amax(-1) == 0
    assert empty.any()
    for gram, group in itertools.product((False, True), (1, 2, 3)):
        tiling = _tiling.Tiling(_tiling.make_axis(2, 1, 2, group), _tiling.make_axis(6, 3, 2, group), gram)
        monkeypatch.setattr(functional, "choose_tiling", lambda *args, tiling=tiling, **kwargs: tiling)
        centroids = cluster_tokens(tokens, (2, 6), (1, 3), inverse_temperature=settings["temperature"]).centroids
        assert_near(centroids, tensors["clusters"])
        assert torch.equal(centroids.abs().amax(-1) == 0, empty)


def test_ties_are_kept():
    tokens = make_tokens(1, (6, 6), 24)
    centroids = tokens[:, :12].repeat_interleave(3, 1)
    plan = plan_reconstruction(tokens, centroids, neighbors=4, normalization="l1")
    assert ((plan.weights > 0).sum(-1) == 6).all()


# --- Numerics
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("grid", "cluster_grid"), [((12, 12), (8, 8)), ((20, 14), (14, 12))])
def test_half_precision_is_computed_in_float32(dtype, grid, cluster_grid):
    tokens = (200 * make_tokens(2, grid, 64)).to(dtype)
    assert tokens.float().square().sum(-1).max() > 1e6, "squared norms must overflow in float16"
    settings = {"inverse_temperature": 1e-5}
    clusters = cluster_tokens(tokens, grid, cluster_grid, **settings).centroids
    assert clusters.dtype == dtype
    assert_near(clusters, cluster_tokens(tokens.float(), grid, cluster_grid, **settings).centroids, 5e-3)
    plan = plan_reconstruction(tokens, clusters, **settings)
    exact = plan_reconstruction(tokens.float(), clusters.float(), **settings)
    assert torch.equal(dense_weights(plan, clusters.shape[1]), dense_weights(exact, clusters.shape[1]))
    output = reconstruct_tokens(clusters, plan)
    assert output.dtype == dtype
    assert torch.isfinite(output).all()
    assert_near(output, reconstruct_tokens(clusters.float(), exact), 5e-3)


def run_all(tokens, name):
    grid, cluster_grid, settings = PIPELINES[name]
    temperature = 2 / tokens.shape[2]  # of the order of the distances, so that float32 rounding stays small
    clusters = cluster_tokens(tokens, grid, cluster_grid, inverse_temperature=temperature).centroids
    plan = plan_reconstruction(tokens, clusters, neighbors=6, inverse_temperature=temperature, **settings)
    return reconstruct_tokens(torch.tanh(clusters), plan)


PIPELINES = {
    "dense": ((12, 10), (8, 6), {}),
    "global": ((20, 14), (14, 12), {}),
    "window": ((20, 14), (14, 12), {"window": 5, "grid": (20, 14), "cluster_grid": (14, 12)}),
    "nearest": ((20, 14), (14, 12), {"expansion": "nearest"}),
    "delta": ((20, 14), (14, 12), {"expansion": "delta"}),
}


@pytest.mark.parametrize("name", [*PIPELINES, "auto"])
def test_nothing_on_a_gpu_changes_from_run_to_run(name):
    """Nor does it wait for the host: fake tensors have no values."""
    grid, cluster_grid, settings = PIPELINES["global" if name == "auto" else name]
    settings = {**settings, "inverse_temperature": "auto" if name == "auto" else 0.02}
    with FakeTensorMode(), torch.no_grad(), Refuses():
        tokens = torch.empty(2, grid[0] * grid[1], 32, device="cuda", dtype=torch.bfloat16)
        keys = torch.empty(2, grid[0] * grid[1], 8, device="cuda", dtype=torch.bfloat16)
        temperature = settings["inverse_temperature"]
        clusters = cluster_tokens(tokens, grid, cluster_grid, inverse_temperature=temperature, keys=keys)
        plan = plan_reconstruction(tokens, clusters.centroids, neighbors=6, **settings)
        rebuilt = reconstruct_tokens(clusters.centroids, plan)
    assert {x.device.type for x in (*clusters, plan.indices, plan.weights, rebuilt)} == {"cuda"}
    assert rebuilt.dtype == clusters.centroids.dtype == torch.bfloat16


@pytest.mark.parametrize("name", PIPELINES)
def test_autocast_changes_nothing(name):
    tokens = make_tokens(2, PIPELINES[name][0], 8)
    expected = run_all(tokens, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run_all(tokens, name), expected)


@pytest.mark.parametrize("name", PIPELINES)
def test_images_do_not_see_each_other(name):
    tokens = make_tokens(3, PIPELINES[name][0], 8)
    together = run_all(tokens, name)
    for i in range(3):
        assert_near(run_all(tokens[i : i + 1], name)[0], together[i], 2e-6)
    broken = tokens.clone()
    broken[1] = torch.nan
    assert_near(run_all(broken, name)[::2], together[::2], 2e-6)


@pytest.mark.parametrize("gram", [False, True])
def test_a_broken_image_stays_alone_in_every_tiling(monkeypatch, gram):
    axes = _tiling.make_axis(20, 14, 2, 4), _tiling.make_axis(14, 12, 2, 3)
    monkeypatch.setattr(functional, "choose_tiling", lambda *args, **kwargs: _tiling.Tiling(*axes, gram))
    tokens = make_tokens(3, (20, 14), 8)
    expected = cluster_tokens(tokens, (20, 14), (14, 12)).centroids
    tokens[1] = torch.inf
    assert_near(cluster_tokens(tokens, (20, 14), (14, 12)).centroids[::2], expected[::2])


@pytest.mark.parametrize("name", PIPELINES)
def test_no_random_numbers(name):
    tokens = make_tokens(1, PIPELINES[name][0], 8)
    before = torch.get_rng_state()
    first = run_all(tokens, name)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(run_all(tokens, name), first)


@pytest.mark.parametrize(("grid", "cluster_grid"), [((12, 10), (8, 6)), ((20, 14), (14, 12))])
def test_as_many_clusters_as_tokens_is_the_identity(grid, cluster_grid):
    del cluster_grid
    tokens = make_tokens(2, grid, 8)
    clusters = cluster_tokens(tokens, grid, grid, iterations=0).centroids
    assert torch.equal(clusters, tokens)
    plan = plan_reconstruction(tokens, clusters, expansion="nearest")
    refined = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
    assert torch.equal(reconstruct_tokens(refined, plan), refined)


def to_tf32(x):
    """Ten bits of the mantissa, rounded to nearest: what a tensor core reads."""
    return ((x.contiguous().view(torch.int32) + 4096) >> 13 << 13).view(torch.float32)


class TF32(TorchDispatchMode):
    """Matrix products as a GPU takes them where the user allows TF32."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in ("mm", "bmm"):
            args = (*map(to_tf32, args[:2]), *args[2:])
        elif name in ("addmm", "baddbmm"):
            args = (args[0], *map(to_tf32, args[1:3]), *args[3:])
        self.products += name in ("mm", "bmm", "addmm", "baddbmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_tf32_spoils_nothing(monkeypatch, gram, offset):
    grid, cluster_grid = (20, 26), (14, 18)
    axes = [_tiling.make_axis(size, count, 2, 5) for size, count in zip(grid, cluster_grid, strict=True)]
    monkeypatch.setattr(functional, "choose_tiling", lambda *args, **kwargs: _tiling.Tiling(*axes, gram))
    # One image with a common offset, as real features have: 97 % of the squared norms at 10.
    direction = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(1))
    tokens = make_tokens(1, grid, 64) + offset * direction

    def run():
        centroids = cluster_tokens(tokens, grid, cluster_grid, inverse_temperature="auto").centroids
        plan = plan_reconstruction(tokens, centroids, inverse_temperature="auto", normalization="l1")
        nearest = plan_reconstruction(tokens, centroids, expansion="nearest").indices
        return centroids, reconstruct_tokens(centroids, plan), nearest

    exact = run()
    with TF32() as mode:
        rounded = run()
    assert mode.products > 10
    # The last weighted mean is of the tokens themselves, so what TF32 leaves of an offset shows there alone.
    spread = (tokens - tokens.mean(1, keepdim=True)).norm()
    for ours, theirs in zip(rounded[:2], exact[:2], strict=True):
        assert (ours - theirs).norm() / spread < 5e-3
    assert (rounded[2] != exact[2]).float().mean() < 0.005


# --- Gradients
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "cluster_grid"), [((12, 10), (8, 6)), ((20, 14), (14, 12))])
@pytest.mark.parametrize("iterations", [0, 3])
def test_clustering_gradient(grid, cluster_grid, iterations):
    tokens = make_tokens(2, grid, 8).requires_grad_()
    keys = make_tokens(2, grid, 5, seed=1).requires_grad_()
    settings = {"iterations": iterations, "inverse_temperature": 0.3, "keys": keys}
    clusters = cluster_tokens(tokens, grid, cluster_grid, **settings)
    expected = reference_cluster(tokens, grid, cluster_grid, **settings)
    upstream = [torch.randn(c.shape, generator=torch.Generator().manual_seed(3)) for c in clusters]
    actual = torch.autograd.grad(clusters, (tokens, keys), upstream)
    wanted = torch.autograd.grad(expected, (tokens, keys), [u.double() for u in upstream])
    for a, w in zip(actual, wanted, strict=True):
        assert_near(a, w)


@pytest.mark.parametrize("name", PIPELINES)
def test_reconstruction_gradient(name):
    grid, cluster_grid, settings = PIPELINES[name]
    tokens = make_tokens(2, grid, 8).requires_grad_()
    centroids = make_tokens(2, cluster_grid, 8, seed=1).requires_grad_()
    refined = torch.randn(centroids.shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    plan = plan_reconstruction(tokens, centroids, neighbors=6, inverse_temperature=0.3, **settings)
    output = reconstruct_tokens(refined, plan)
    expansion = settings.get("expansion")
    near = reference_near(grid, cluster_grid, 5) if name == "window" else None
    normalization = "l1" if expansion == "delta" else "l2"
    weights = reference_weights(tokens, centroids, 6, 0.3, normalization, near)
    if expansion == "nearest":
        weights = F.one_hot(weights.detach().argmax(-1), weights.shape[-1]).double() + 0 * weights
    values = refined.double()
    expected = tokens.double() + weights @ (values - centroids.double()) if expansion == "delta" else weights @ values
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    inputs = (refined,) if expansion == "nearest" else (refined, tokens, centroids)
    assert plan.weights.requires_grad == (expansion != "nearest")
    for a, w in zip(
        torch.autograd.grad(output, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream.double()),
        strict=True,
    ):
        assert_near(a, w, 2e-5)


# --- Compilers
# ------------------------------------------------------------------------------------------------------------


class Pipeline(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, tokens):
        return run_all(tokens, self.name)

    def example(self, batch, seed=0):
        return make_tokens(batch, PIPELINES[self.name][0], 64, seed)


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "global"])  # the training step's
def test_compile(name):
    torch._dynamo.reset()
    model = Pipeline(name)
    tokens = model.example(2)
    assert_near(torch.compile(model, fullgraph=True, backend="aot_eager")(tokens), model(tokens), 2e-6)


def test_compile_under_autocast():
    torch._dynamo.reset()
    model = Pipeline("dense")
    tokens = model.example(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(torch.compile(model, fullgraph=True, backend="aot_eager")(tokens), model(tokens), 2e-6)


def test_compiled_training_step():
    torch._dynamo.reset()
    model = Pipeline("global")
    tokens = model.example(2).requires_grad_()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(tokens), model(tokens)
    assert_near(actual, expected, 2e-6)
    assert_near(*(torch.autograd.grad(output.square().sum(), tokens)[0] for output in (actual, expected)))


@functools.cache
def export(name, strict=False):
    """A pipeline's graph for batches of any size, which is run as it is and by ONNX Runtime."""
    model = Pipeline(name).eval()
    dynamic = ({0: torch.export.Dim("batch", min=2, max=64)},)
    return torch.export.export(model, (model.example(3),), dynamic_shapes=dynamic, strict=strict)


# Strict export is traced by the Dynamo that compiling uses, for which one pipeline tells.
@pytest.mark.parametrize(("name", "strict"), [*((name, False) for name in PIPELINES), ("window", True)])
def test_export_with_dynamic_batch(name, strict):
    model, exported = Pipeline(name).eval(), export(name, strict).module()
    for batch in (3, 5):
        tokens = model.example(batch, seed=7)
        assert_near(exported(tokens), model(tokens), 2e-6)


@pytest.mark.parametrize("name", ["dense", "window"])
def test_onnx_runtime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Pipeline(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(export(name), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    tokens = model.example(4, seed=7)
    (output,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    assert_near(torch.from_numpy(output), model(tokens))


# --- Cost
# -----------------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operator returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def largest(function, *args, **kwargs):
    with torch.no_grad(), LargestTensor() as mode:
        function(*args, **kwargs)
    return mode.elements


def test_no_tensor_over_all_pairs():
    counts = {}
    for side in (40, 80):
        grid, cluster_grid = (side, side), (side * 7 // 10, side * 7 // 10)
        tokens = make_tokens(1, grid, 16)
        pairs = side**2 * cluster_grid[0] * cluster_grid[1]
        centroids = cluster_tokens(tokens, grid, cluster_grid, iterations=0).centroids
        where = {"grid": grid, "cluster_grid": cluster_grid, "window": 5}
        counts[side] = (
            largest(cluster_tokens, tokens, grid, cluster_grid, iterations=2),
            largest(plan_reconstruction, tokens, centroids, **where),
        )
        assert max(counts[side]) < pairs / 3
    for small, big in zip(counts[40], counts[80], strict=True):
        assert big < 5 * small, "four times the tokens must need about four times the memory"
    assert largest(plan_reconstruction, tokens, centroids) <= functional.CHUNK_ELEMENTS < pairs


def flops(function, *args, **kwargs):
    with torch.no_grad(), flop_counter() as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize(("window", "share"), [(5, 0.1), (7, 0.25)])
def test_clustering_flops(window, share):
    tokens = make_tokens(1, (40, 40), 1024)
    dense = 2 * 2 * 5 * 1600 * 784 * 1024
    count = flops(cluster_tokens, tokens, (40, 40), (28, 28), window=window)
    assert 0 < count < share * dense


def test_flops_are_linear_in_the_tokens():
    counts = []
    for side in (20, 40, 80):
        grid, cluster_grid = (side, side), (side * 7 // 10, side * 7 // 10)
        tokens = make_tokens(1, grid, 32)
        centroids = cluster_tokens(tokens, grid, cluster_grid, iterations=0).centroids
        where = {"grid": grid, "cluster_grid": cluster_grid, "window": 5}
        counts.append(
            (flops(cluster_tokens, tokens, grid, cluster_grid), flops(plan_reconstruction, tokens, centroids, **where))
        )
    for small, big in itertools.pairwise(counts):
        assert all(3 < b / s < 5 for s, b in zip(small, big, strict=True))


def test_second_reconstruction_needs_no_distances():
    tokens = make_tokens(1, (40, 40), 64)
    centroids = cluster_tokens(tokens, (40, 40), (28, 28), iterations=0).centroids
    plan = plan_reconstruction(tokens, centroids)
    assert plan.indices.shape == (1, 1600, 20)
    assert flops(reconstruct_tokens, centroids, plan) == 0, "no matrix product"
    assert largest(reconstruct_tokens, centroids, plan) <= 1600 * 64


# --- Bad inputs
# -----------------------------------------------------------------------------------------------------------


def test_a_side_is_a_square_and_may_come_from_numpy():
    tokens = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    expected = cluster_tokens(tokens, (4, 4), (2, 2)).centroids
    assert torch.equal(cluster_tokens(tokens, 4, 2).centroids, expected)
    assert torch.equal(cluster_tokens(tokens, list(np.array([4, 4])), torch.Size([2, 2])).centroids, expected)


TOKENS = torch.zeros(2, 12, 4)
CENTROIDS = torch.zeros(2, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(2, 13, 4)}, "13.*N = 12.*class tokens"),
        ({"tokens": torch.zeros(12, 4)}, "must be .B, N, C."),
        ({"grid": (4, 4)}, "N = 16"),
        ({"grid": (12,)}, "grid=.12,. is not valid: it must be two positive numbers"),
        ({"cluster_grid": (0, 2)}, "cluster_grid=.0, 2. is not valid: it must be two positive numbers"),
        ({"cluster_grid": (-2, 2)}, "cluster_grid=.-2, 2."),
        ({"iterations": -1}, "iterations=-1.*for example iterations=5"),
        ({"window": 4}, "window=4 .*must be an odd.*for example window=5"),
        ({"window": 0}, "window=0.*for example window=5"),
        ({"window": -3}, "window=-3.*for example window=5"),
        ({"inverse_temperature": 0}, "inverse_temperature=0 .*above 0"),
        ({"inverse_temperature": -0.1}, "inverse_temperature=-0.1"),
        ({"inverse_temperature": float("nan")}, "inverse_temperature=nan"),
        ({"inverse_temperature": float("inf")}, "inverse_temperature=inf"),
        ({"inverse_temperature": "warm"}, "inverse_temperature='warm' .*must be 'auto'"),
        ({"keys": torch.zeros(2, 11, 4)}, "keys of shape .2, 11, 4."),
        ({"keys": torch.zeros(1, 12, 4)}, "keys of shape .1, 12, 4."),
        ({"keys": torch.zeros(12, 4)}, "keys of shape .12, 4."),
    ],
)
def test_bad_clustering(changes, message):
    settings = {"tokens": TOKENS, "grid": (3, 4), "cluster_grid": (2, 2), **changes}
    with pytest.raises(ValueError, match=message):
        cluster_tokens(settings.pop("tokens"), settings.pop("grid"), settings.pop("cluster_grid"), **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbors": 0}, "neighbors=0 .*-1.*for example neighbors=20"),
        ({"neighbors": -2}, "neighbors=-2"),
        ({"normalization": "sum"}, "normalization='sum'.*l2.*l1"),
        ({"expansion": "hard"}, "expansion='hard'.*soft.*nearest.*delta"),
        ({"inverse_temperature": 0.0}, "inverse_temperature=0.0"),
        ({"inverse_temperature": "cold"}, "auto"),
        ({"tokens": torch.zeros(12, 4)}, "tokens and centroids of shapes"),
        ({"tokens": torch.zeros(3, 12, 4)}, "tokens and centroids of shapes .3, 12, 4."),
        ({"tokens": torch.zeros(2, 12, 5)}, "tokens and centroids of shapes .2, 12, 5."),
        ({"keys": TOKENS}, "keys was given without key_centroids"),
        ({"key_centroids": CENTROIDS}, "key_centroids was given without keys"),
        ({"keys": torch.zeros(2, 12, 3), "key_centroids": CENTROIDS}, "keys and key_centroids of shapes"),
        ({"keys": torch.zeros(2, 11, 4), "key_centroids": CENTROIDS}, "as many rows"),
        ({"keys": TOKENS, "key_centroids": torch.zeros(2, 5, 4)}, "as many rows"),
        ({"window": 5}, "window=5 needs grid and cluster_grid"),
        ({"window": 5, "grid": (3, 4)}, "cluster_grid=None"),
        ({"window": 2, "grid": (3, 4), "cluster_grid": (2, 2)}, "window=2 .*must be an odd"),
        ({"window": 5, "grid": (4, 4), "cluster_grid": (2, 2)}, "N = 16"),
        ({"window": 5, "grid": (3, 4), "cluster_grid": (2, 3)}, "6 clusters but there are 4"),
        ({"window": 5, "grid": (3, 4), "cluster_grid": (0, 3)}, "cluster_grid=.0, 3."),
    ],
)
def test_bad_plan(changes, message):
    settings = {"tokens": TOKENS, "centroids": CENTROIDS, **changes}
    with pytest.raises(ValueError, match=message):
        plan_reconstruction(settings.pop("tokens"), settings.pop("centroids"), **settings)


@pytest.mark.parametrize("refined", [torch.zeros(4, 4), torch.zeros(3, 4, 4)])
def test_bad_refined(refined):
    with pytest.raises(ValueError, match="refined of shape"):
        reconstruct_tokens(refined, plan_reconstruction(TOKENS, CENTROIDS))


@pytest.mark.parametrize("refined", [torch.zeros(2, 4, 7), torch.zeros(2, 5, 4)])
def test_delta_needs_the_residual_stream(refined):
    with pytest.raises(ValueError, match=r'centroids.*use expansion="soft"'):
        reconstruct_tokens(refined, plan_reconstruction(TOKENS, CENTROIDS, expansion="delta"))
