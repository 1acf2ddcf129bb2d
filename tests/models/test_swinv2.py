import pytest
import torch
from test_swin import TINY as SWIN
from test_swin import StagedTester
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)

import hf_tokaccel as ta
from hf_tokaccel.models.swinv2 import TokAccelSwinv2Backbone, TokAccelSwinv2SelfAttention

# At 72 x 72 pixels no stage's map is smaller than a window, which this host would shrink for good.
TINY = {**SWIN, "image_size": 72, "pretrained_window_sizes": [0, 0, 0]}


class Swinv2Tester(StagedTester):
    legacy_key = new_key = "attention.self.query"  # never renamed
    block_tolerance = 0.05  # the network of relative biases is left out: small where windows and channels are real
    forms = {**StagedTester.forms, "similarity_on": ("tokens",)}

    def config(self):
        return Swinv2Config(**TINY)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite(self, model, dtype):
        """Without padding: of zero keys, the native cosine attention makes NaN in float16."""
        half = type(model)(model.config).to(dtype).eval()
        images = self.images(size=(64, 64)).to(dtype)
        for module in (half, ta.accelerate(half, self.accel)):
            assert all(output.isfinite().all() for output in self.run(module, images))
        if dtype == torch.float16 and self.image_size[0] % 2:
            assert not all(output.isfinite().all() for output in self.run(half, self.images().to(dtype)))

    def test_there_is_no_layernorm_to_compare_after(self, model):
        with pytest.raises(ValueError, match=r"similarity_on='normalized' is not valid for Swin V2.*for example"):
            ta.accelerate(model, {**self.accel, "similarity_on": "normalized"})

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, model, fast):
        with torch.no_grad():
            attentions = fast(self.images(), output_attentions=True).attentions
        assert len(attentions) == 3
        assert attentions[1].shape == (self.windows, 2, 4, 4)
        assert [a.shape[-1] for a in attentions] == [16, 4, 16]


class TestSwinv2Model(Swinv2Tester):
    secondary = True
    native, auto = Swinv2Model, AutoModel


class TestSwinv2ForImageClassification(Swinv2Tester):
    secondary = True
    native, auto = Swinv2ForImageClassification, AutoModelForImageClassification


class TestSwinv2ForMaskedImageModeling(Swinv2Tester):
    """Square images only, as its host."""

    secondary = True
    native, auto = Swinv2ForMaskedImageModeling, AutoModelForMaskedImageModeling
    image_size = other_size = (72, 72)
    windows = 2 * 3 * 3

    def config(self):
        return Swinv2Config(**{**TINY, "encoder_stride": 16})

    def test_image_that_is_no_multiple_of_the_patch_is_refused(self, model, fast):
        images = self.images(size=(62, 62))
        assert [a.shape for a in self.run(fast, images)] == [b.shape for b in self.run(model, images)]


class TestSwinv2Backbone(Swinv2Tester):
    slow_graphs = True
    native, auto = Swinv2Backbone, TokAccelSwinv2Backbone

    def config(self):
        return Swinv2Config(**TINY, out_features=["stem", "stage1", "stage2", "stage3"])


@pytest.mark.parametrize("pretrained", [0, 6])
def test_biases_are_those_at_the_distances_of_the_clusters(pretrained):
    """With as many clusters as tokens, they are the host's; half as many are twice as far from each other."""
    torch.manual_seed(0)
    model = Swinv2Model(Swinv2Config(**{**TINY, "window_size": 8, "pretrained_window_sizes": [pretrained] * 3}))
    attention = model.encoder.layers[0].blocks[0].attention.self
    table = attention.relative_coords_table
    assert table.shape == (1, 15, 15, 2)
    ours = TokAccelSwinv2SelfAttention.cluster_coordinates
    attention.side = 8
    assert torch.allclose(ours(attention, table.device), table, atol=1e-6)
    attention.side = 4
    assert torch.allclose(ours(attention, table.device), table[:, 1:14:2, 1:14:2], atol=1e-6)


def test_window_that_the_host_shrinks_to_a_small_map():
    """The last of these stages has a map of 2 x 2 tokens at its image size, and so a window of that."""
    config = Swinv2Config(**{**TINY, "image_size": 32})
    with pytest.raises(ValueError, match="square smaller than the 2 x 2 tokens of a window of stage 3"):
        ta.accelerate_config(config, {"cluster_after": 5, "cluster_grid": 2})
    torch.manual_seed(0)
    fast = ta.accelerate(Swinv2Model(config).eval(), {"cluster_after": 5, "cluster_grid": 1})
    with torch.no_grad(), ta.observe_clusters() as seen:
        assert fast(torch.randn(1, 3, 32, 32)).last_hidden_state.shape == (1, 4, 64)
    assert seen[0].grid == (2, 2)
