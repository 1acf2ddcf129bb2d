import pytest
import torch
from adaptive_family import Adaptive
from family import ACCEL, FamilyTester
from test_beit import TINY, expected_attention, reconstructions, resized_bias, tables_of
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionForSemanticSegmentation,
    Data2VecVisionModel,
)

import hf_tokaccel as ta


class Data2VecVisionTester(FamilyTester):
    """Position biases start at zero, which would prove nothing."""

    legacy_key = new_key = "encoder.layer.0.attention.attention.query.weight"
    options = {}

    def config(self):
        return Data2VecVisionConfig(**{**TINY, **self.options})

    def build(self):
        model = super().build()
        for name, parameter in model.named_parameters():
            if "position_bias_table" in name:
                torch.nn.init.normal_(parameter)
        return model

    def build_eager(self):
        """The host takes its attention implementation when it is built only."""
        model = self.build()
        eager = self.native._from_config(model.config, attn_implementation="eager").eval()
        eager.load_state_dict(model.state_dict())
        return eager

    def test_attentions_inside_the_span_are_those_of_the_clusters(self):
        super().test_attentions_inside_the_span_are_those_of_the_clusters(self.build_eager())


class TestData2VecVisionModel(Data2VecVisionTester):
    secondary = True
    native, auto = Data2VecVisionModel, AutoModel
    image_size, grid = (32, 48), (8, 12)
    reentrant = False
    options = {"use_shared_relative_position_bias": True}


class TestData2VecVisionAdaptive(Adaptive, TestData2VecVisionModel):
    pass


class TestData2VecVisionForImageClassification(Data2VecVisionTester):
    secondary = True
    native, auto = Data2VecVisionForImageClassification, AutoModelForImageClassification


class TestData2VecVisionForSemanticSegmentation(Data2VecVisionTester):
    secondary = True
    native, auto = Data2VecVisionForSemanticSegmentation, AutoModelForSemanticSegmentation
    other_size = None
    flop_ratio = 0.999
    options = {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 8, "pool_scales": [2, 4]}


def test_only_what_the_head_reads_is_reconstructed(monkeypatch):
    segmenter = Data2VecVisionConfig(**TINY, out_indices=[1, 2, 3, 4], auxiliary_channels=8)
    heads = {
        Data2VecVisionForImageClassification(Data2VecVisionConfig(**TINY)): 1,  # the mean over patches
        Data2VecVisionForImageClassification(Data2VecVisionConfig(**TINY, use_mean_pooling=False)): 0,  # class token
        Data2VecVisionForSemanticSegmentation(segmenter): 2,
    }
    for model, count in heads.items():
        fast = ta.accelerate(model.eval(), ACCEL)
        assert reconstructions(monkeypatch, fast) == count
        assert reconstructions(monkeypatch, fast, output_hidden_states=True) == 3


def test_clusters_attend_with_the_tables_resized_to_their_grid():
    model = ta.accelerate(TestData2VecVisionModel().build_eager(), {**ACCEL, "cluster_grid": [4, 3]})
    layer, seen = model.encoder.layer[2].attention.attention, {}
    layer.query.register_forward_hook(lambda m, i, o: seen.update(query=o))
    layer.key.register_forward_hook(lambda m, i, o: seen.update(key=o))
    with torch.no_grad():
        attention = model(FamilyTester().images(), output_attentions=True).attentions[2]
        query, key = (seen[name].unflatten(2, (2, 16)).transpose(1, 2) for name in ("query", "key"))
        modules = (model.encoder.relative_position_bias, layer.relative_position_bias)
        bias = sum(resized_bias(module.relative_position_bias_table, (8, 8), (4, 3)) for module in modules)
        torch.testing.assert_close(attention, (query @ key.transpose(2, 3) / 4 + bias).softmax(dim=-1))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_adaptive_clusters_attend_as_the_tokens_at_their_middle(own, shared):
    tester = Data2VecVisionTester()
    tester.native = Data2VecVisionModel
    tester.options = {"use_relative_position_bias": own, "use_shared_relative_position_bias": shared}
    torch.manual_seed(0)
    model = ta.accelerate(tester.build_eager(), {"cluster_after": 1, "clusters": 0.3})
    layer, seen = model.encoder.layer[1].attention.attention, {}
    layer.query.register_forward_hook(lambda m, i, o: seen.update(query=o))
    layer.key.register_forward_hook(lambda m, i, o: seen.update(key=o))
    with torch.no_grad(), ta.observe_clusters() as observed:
        attention = model(tester.images(), output_attentions=True).attentions[1]
        expected = expected_attention(seen["query"], seen["key"], tables_of(model, 1), observed[0].clusters.regions)
    torch.testing.assert_close(attention, expected)


@pytest.mark.parametrize("options", [{}, {"use_relative_position_bias": False}], ids=["positions", "plain"])
def test_the_mask_of_sizes_has_the_type_of_the_queries(monkeypatch, options):
    """This host calls PyTorch's attention itself, whose kernels on a GPU misread a mask of another type."""
    attend, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def spy(query, key, value, attn_mask=None, **kwargs):
        seen.add((query.dtype, attn_mask.dtype if attn_mask is not None else query.dtype))
        return attend(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = Data2VecVisionModel(Data2VecVisionConfig(**{**TINY, **options})).eval().to(torch.bfloat16)
    fast = ta.accelerate(model, {"cluster_after": 1, "clusters": 0.5})
    with torch.no_grad():
        fast(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert seen == {(torch.bfloat16, torch.bfloat16)}
