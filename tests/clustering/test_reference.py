"""The plain reference: it agrees with the released code's goldens and with the functions that the package runs."""

import pytest
import torch
from test_functional import CLUSTERING, RECONSTRUCTION, RECONSTRUCTION_CASES, assert_near

from hf_tokaccel import functional
from hf_tokaccel.clustering.reference import cluster_tokens, reconstruct_tokens, squared_distances


@pytest.mark.parametrize("case", CLUSTERING)
def test_clustering(case):
    settings, tensors = CLUSTERING[case]
    tokens, grids = tensors["input"].flatten(2).transpose(1, 2), (settings["grid"], settings["clusters"])
    options = {"inverse_temperature": settings["temperature"], "window": settings["window_size"]}
    options["iterations"] = settings["n_iters"]
    centroids = cluster_tokens(tokens, *map(tuple, grids), **options)
    assert_near(centroids, tensors["clusters"])
    assert_near(functional.cluster_tokens(tokens, *grids, **options).centroids, centroids)


@pytest.mark.parametrize(("case", "neighbors"), RECONSTRUCTION_CASES)
def test_reconstruction(case, neighbors):
    settings, tensors = RECONSTRUCTION[case]
    tokens, centroids, refined = (tensors[name] for name in ("feat_before", "feat_after", "refined"))
    scale, expected = settings["temperature"], tensors[f"out_k{'all' if neighbors < 0 else neighbors}"]
    kept = neighbors if neighbors > 0 else centroids.shape[1]
    output = reconstruct_tokens(refined, tokens, centroids, kept, scale)
    plan = functional.plan_reconstruction(tokens, centroids, neighbors=neighbors, inverse_temperature=scale)
    assert_near(functional.reconstruct_tokens(refined, plan), output)
    # Farther than that, the eps of the released normalisation shrinks the output; ours does not.
    agree = scale * squared_distances(tokens, centroids).amin(-1) < 27
    assert agree.all() or "underflow" in case
    assert_near(output[agree], expected[agree])


def test_gradients_flow_through_the_weighted_mean_alone():
    tokens = torch.randn(1, 36, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for cluster in (cluster_tokens, lambda *args: functional.cluster_tokens(*args).centroids):
        leaf = tokens.clone().requires_grad_()
        cluster(leaf, (6, 6), (3, 3)).square().sum().backward()
        gradients.append(leaf.grad)
    assert_near(gradients[0], gradients[1])
