import pytest
import torch
from adaptive_family import Adaptive
from test_eomt import QueryBlocksTester
from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

import hf_tokaccel as ta


class TestEomtDinov3(QueryBlocksTester):
    secondary = True  # graphs break where EoMT's do, and DINOv3's tests compile and export the rotary embedding
    native = EomtDinov3ForUniversalSegmentation
    legacy_key = new_key = "layers.0.attention.q_proj.weight"

    def config(self):
        return EomtDinov3Config(
            **self.sizes, intermediate_size=64, pos_embed_shift=0.5, pos_embed_jitter=1.5, pos_embed_rescale=2.0
        )

    @pytest.mark.parametrize("training", [True, False])
    def test_clusters_are_rotated_by_the_mean_centre_of_their_tokens(self, model, training):
        # Without iterations clusters are blocks of 2 x 2 tokens.
        fast = ta.accelerate(self.build(), {**self.accel, "iterations": 0}).train(training)
        given = []
        for layer in fast.layers._modules.values():
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: given.append(kwargs["position_embeddings"]), with_kwargs=True
            )
        with torch.no_grad():
            fast(self.images())
        assert [cos.shape[-2] for cos, _ in given] == [64, 16, 16, 16, 64, 64]
        if not training:
            native = model.rope_embeddings(self.images())
            assert all(torch.equal(a, b) for a, b in zip(given[0], native, strict=True))
        # The lowest of the four frequencies makes less than half a turn, so it tells where y and x are.
        tokens, clusters = (
            torch.atan2(sin, cos)[..., [3, 7]] / model.rope_embeddings.inv_freq[3] for cos, sin in given[:2]
        )
        means = tokens.unflatten(0, (4, 2, 4, 2)).mean((1, 3)).flatten(0, 1)
        assert torch.allclose(clusters, means.expand_as(clusters), atol=1e-5)
        # From there the other frequencies follow.
        angles = (means[:, :, None] * model.rope_embeddings.inv_freq).flatten(1).tile(2)
        for expected, actual in zip((angles.cos(), angles.sin()), given[1], strict=True):
            assert torch.allclose(actual, expected.expand_as(actual), atol=1e-4)


class TestEomtDinov3Adaptive(Adaptive, TestEomtDinov3):
    # Whatever the clusters, and of a grid.
    test_span_ends_before_the_queries = test_pipeline_loads_the_folder = None
    test_clusters_are_rotated_by_the_mean_centre_of_their_tokens = None
