"""SWAG's image classification: clusters before block `cluster_after`, and the class token is read.

There are no reference tensors of SWAG: what is tested is the schedule, against Transformers' own modules.
"""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import hf_tokaccel as ta
from hf_tokaccel.functional import cluster_tokens

DEPTH, GRID, CLUSTERS, CLUSTER_AFTER = 5, (8, 8), (5, 5), 2
ACCEL = {
    "cluster_after": CLUSTER_AFTER,
    "cluster_grid": CLUSTERS,
    "iterations": 5,
    "window": 5,
    "inverse_temperature": 1.0,
}


@pytest.fixture(scope="module")
def native():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
        num_labels=7,
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_nothing_is_reconstructed_and_the_span_is_class_token_and_clusters(native, images, monkeypatch):
    model = ta.accelerate(native, ACCEL)
    lengths = []
    for layer in torch.nn.ModuleList.__iter__(model.vit.layers):
        layer.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    for name in ("reconstruct_tokens", "plan_reconstruction"):
        monkeypatch.setattr(f"hf_tokaccel.hosts.clusters.{name}", None)
    model(images)
    assert lengths == [1 + 64] * CLUSTER_AFTER + [1 + 25] * (DEPTH - CLUSTER_AFTER)


@torch.no_grad()
def test_logits_are_those_of_the_schedule_written_out(native, images):
    states = native.vit.embeddings(images)
    for index, layer in enumerate(native.vit.layers):
        if index == CLUSTER_AFTER:
            clusters = cluster_tokens(
                states[:, 1:], GRID, CLUSTERS, iterations=5, window=5, inverse_temperature=1.0
            ).centroids
            states = torch.cat((states[:, :1], clusters), dim=1)
        states = layer(states)
    expected = native.classifier(native.vit.layernorm(states)[:, 0])
    actual = ta.accelerate(native, ACCEL)(images).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, native(images).logits, rtol=1e-3, atol=1e-3)
