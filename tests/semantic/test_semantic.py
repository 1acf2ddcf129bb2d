import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file
from semantic import quietly
from transformers import (
    AutoConfig,
    AutoModel,
    BeitConfig,
    Dinov2Config,
    Dinov2Model,
    PreTrainedConfig,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

import hf_tokaccel as ta
from hf_tokaccel.models.stvit import TokAccelSTViTConfig, TokAccelSTViTForImageClassification, TokAccelSTViTModel
from hf_tokaccel.semantic import SEMANTIC, SemanticTokenConfig, initialize
from hf_tokaccel.semantic.layers import SemanticLayer

SETTING = {"method": "semantic_tokens"}
CLUSTERING = {"cluster_after": 1, "cluster_grid": 4}
TINY = {
    "image_size": 16,
    "patch_size": 2,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


# configuration


def test_defaults_are_those_of_the_paper_at_depth_12():
    setting = TokAccelSTViTConfig().accel_view()
    assert setting.token_grid == (4, 4)
    assert (setting.base_layers, setting.generation_layers, setting.pooling) == (4, 2, "weighted")
    assert (setting.global_centers, setting.center_offset, setting.layer_scale_init_value) == (True, False, 0.0)


def test_round_trip_through_a_plain_dict():
    setting = SemanticTokenConfig(token_grid=3, base_layers=2, layer_scale_init_value=1e-5, recover=True)
    values = setting.to_dict()
    assert values["token_grid"] == [3, 3]
    assert values["method"] == "semantic_tokens"
    assert SemanticTokenConfig.from_dict(values) == setting


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_grid": (4, 0)}, r"token_grid=\(4, 0\) .*two positive numbers"),
        ({"token_grid": (4, 4, 4)}, "token_grid="),
        ({"base_layers": 0}, "base_layers=0 .*for example base_layers=4"),
        ({"generation_layers": True}, "generation_layers=True .*for example generation_layers=2"),
        ({"pooling": "mean"}, "pooling='mean' .*weighted, max"),
        ({"stem": "linear"}, "stem='linear' .*patch, conv"),
        ({"merging": "max"}, "merging='max' .*grid, linear"),
        ({"formulation": "any", "recover": True}, "formulation='any' .*classification, detection"),
        ({"center_offset": 1}, "center_offset=1 .*True or False"),
        ({"global_centers": "yes"}, "global_centers='yes' .*None, True or False"),
        ({"global_centers": True, "generation_layers": 1}, "global_centers=True .*False with generation_layers=1"),
        ({"layer_scale_init_value": -1.0}, "layer_scale_init_value=-1.0 .*0 for no LayerScale"),
        ({"key_window": 0}, "key_window=0 .*for example key_window=10"),
        ({"semantic_layers": 2}, "semantic_layers=2 .*None with recover=False"),
        ({"pad_mask": "released"}, "pad_mask='released' .*None with recover=False"),
        ({"recover": True, "key_window": 7}, "key_window=7 .*None with recover=True"),
        ({"recover": True, "merging": "grid"}, "merging='grid' .*None with recover=True"),
        (
            {"recover": True, "formulation": "classification", "pad_mask": "corrected"},
            "pad_mask='corrected' .*pads no",
        ),
        ({"method": "token_clustering"}, "method='token_clustering' .*semantic_tokens"),
    ],
)
def test_values_outside_of_what_is_allowed_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SemanticTokenConfig(**change)


def test_unknown_keys_name_the_version_that_wrote_them():
    with pytest.raises(ValueError, match=r"unknown keys \['tokens'\] in accel \(written by hf_tokaccel 9.9"):
        SemanticTokenConfig.from_dict({"tokens": 16, "version": "9.9"})
    with pytest.raises(ValueError, match="method='pruning'"):
        TokAccelSTViTConfig(accel={"method": "pruning"})


@pytest.mark.parametrize(("depth", "base", "fits"), [(12, 9, True), (12, 10, False), (4, 1, True), (3, 1, False)])
def test_at_least_one_layer_follows_generation(depth, base, fits):
    setting = SemanticTokenConfig(base_layers=base)
    if fits:
        setting.check_depth(depth)
        return
    with pytest.raises(ValueError, match=rf"base_layers={base} .*at most {depth - 3}: the model has {depth} layers"):
        setting.check_depth(depth)


@pytest.mark.parametrize(("depth", "fits"), [(6, True), (18, True), (8, False)])
def test_units_divide_the_depth(depth, fits):
    setting = SemanticTokenConfig(recover=True, base_layers=1, semantic_layers=2)
    if fits:
        setting.check_depth(depth, "stage 3")
        return
    with pytest.raises(ValueError, match=r"base_layers=1 .*= 6 layers divide the 8 layers of stage 3.*base_layers=3"):
        setting.check_depth(depth, "stage 3")


# the layer


class HostConfig(PreTrainedConfig):
    qkv_bias = True
    hidden_act = "gelu"
    hidden_dropout_prob = 0.0
    attention_probs_dropout_prob = 0.0


@pytest.fixture
def layer():
    torch.manual_seed(0)
    config = HostConfig()
    config._attn_implementation = "eager"
    return SemanticLayer(config, 16, 2, 32, eps=1e-6).eval()


@torch.no_grad()
def test_own_tokens_and_context_are_one_set_of_keys(layer):
    queries, own, context = (torch.randn(2, n, 16) for n in (3, 4, 5))
    expected = layer(queries, torch.cat((own, context), 1))
    assert torch.allclose(layer(queries, context, own), expected, atol=1e-6)
    assert torch.allclose(layer(own, context, own), layer(own, torch.cat((own, context), 1)), atol=1e-6)
    assert torch.allclose(layer(queries), layer(queries, queries), atol=1e-6)


@torch.no_grad()
def test_gathered_keys_are_those_of_gathered_tokens(layer):
    queries, context = torch.randn(4, 3, 16), torch.randn(2, 6, 16)
    index = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])

    def gather(tokens):
        return tokens[:, index].flatten(0, 1)

    assert torch.allclose(layer(queries, context, gather=gather), layer(queries, gather(context)), atol=1e-6)


@torch.no_grad()
def test_mask_hides_keys(layer):
    queries, context = torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    mask = torch.zeros(1, 1, 1, 6).masked_fill(torch.arange(6) >= 4, float("-inf"))
    assert torch.allclose(layer(queries, context, attention_mask=mask), layer(queries, context[:, :4]), atol=1e-6)


@torch.no_grad()
def test_without_shortcut_only_what_is_attended_remains(layer):
    torch.nn.init.zeros_(layer.attention.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.fc2.weight)
    torch.nn.init.zeros_(layer.mlp.fc2.bias)
    queries = torch.randn(2, 3, 16)
    bias = layer.attention.o_proj.bias
    assert torch.allclose(layer(queries, shortcut=False), bias.expand(2, 3, 16))
    assert torch.allclose(layer(queries), queries + bias)


@torch.no_grad()
def test_layer_scale_scales_both_branches(layer):
    scaled = SemanticLayer(layer.attention.config, 16, 2, 32, eps=1e-6, layer_scale=0.5).eval()
    scaled.load_state_dict(layer.state_dict(), strict=False)
    for linear in (layer.attention.o_proj, layer.mlp.fc2):
        linear.weight.mul_(0.5)
        linear.bias.mul_(0.5)
    queries = torch.randn(2, 3, 16)
    assert torch.allclose(scaled(queries), layer(queries), atol=1e-6)


# initialisation and loading


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**TINY)).eval()


def test_the_report_says_where_everything_comes_from(plain):
    model, report = quietly(initialize, plain, SETTING)
    assert sorted(report.initialized + report.untrained) == sorted(name for name, _ in model.named_parameters())
    assert report.unused == ["vit.embeddings.cls_token"]
    assert "vit.global_centers.weight" in report.untrained
    text = str(report)
    assert text.startswith(f"{len(report.initialized)} parameters come from the plain model; 6 are untrained (vit.glo")
    assert text.endswith("1 of the plain model are not used (vit.embeddings.cls_token)")


def test_the_plain_model_and_its_configuration_stay_as_they_were(plain):
    state, config = copy.deepcopy(plain.state_dict()), plain.config.to_dict()
    model = quietly(ta.accelerate, plain, SETTING)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert plain.config.to_dict() == config


def test_mode_and_precision_are_those_of_the_plain_model(plain):
    half = quietly(ta.accelerate, copy.deepcopy(plain).to(torch.bfloat16).train(), SETTING)
    assert half.training
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not quietly(ta.accelerate, plain, SETTING).training


def test_loading_in_half_precision(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    model = quietly(TokAccelSTViTForImageClassification.from_pretrained, tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_shortest_auto_path(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    accel = {**SETTING, "token_grid": 3}
    with pytest.warns(UserWarning, match="TokAccelSTViTModel is not trained yet"):
        model = AutoModel.from_pretrained(tmp_path, model_type="tokaccel_stvit", accel=accel)
    assert type(model) is TokAccelSTViTModel
    assert model.config.accel["token_grid"] == [3, 3]


def test_loading_information_is_that_of_the_plain_model(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    _, info = quietly(TokAccelSTViTForImageClassification.from_pretrained, tmp_path, output_loading_info=True)
    assert not info["missing_keys"]


def test_a_trained_folder_loads_silently_with_another_switch_refused(plain, tmp_path):
    model = quietly(ta.accelerate, plain, SETTING)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = TokAccelSTViTForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="accel=None is not valid for model type 'tokaccel_stvit'"):
        TokAccelSTViTForImageClassification.from_pretrained(tmp_path, accel=None)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_plain_models_still_load_as_themselves(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is ViTModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is ViTConfig


def test_the_host_follows_from_the_class_not_from_a_file(plain):
    """Configurations that were copied through dicts keep the model type of where they come from."""
    config = ViTConfig(**{**TINY, "model_type": "deit"})
    assert config.model_type == "deit"
    assert type(quietly(ta.accelerate, ViTModel(config), SETTING)) is TokAccelSTViTModel


# bad input


def test_models_without_a_counterpart_are_refused(plain):
    with pytest.raises(ValueError, match="ViTForMaskedImageModeling cannot run on semantic tokens: use one of ViTFor"):
        ta.accelerate(ViTForMaskedImageModeling(ViTConfig(**TINY, encoder_stride=2)), SETTING)
    with pytest.raises(ValueError, match=r"model type 'beit' cannot run on semantic tokens. Supported: deit, .*vit"):
        ta.accelerate_config(BeitConfig(), SETTING)
    with pytest.raises(ValueError, match="give a PreTrainedModel"):
        ta.accelerate(plain.vit.layers, SETTING)


def test_folders_of_other_model_types_are_refused(tmp_path):
    config = Dinov2Config(image_size=28, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is of model type 'dinov2', which TokAccelSTViTModel cannot load.*start from deit, .*vit"
    ):
        TokAccelSTViTModel.from_pretrained(tmp_path)


def test_folders_of_another_class_of_the_host_are_refused(plain, tmp_path, monkeypatch):
    plain.save_pretrained(tmp_path)
    models = {ViTForImageClassification: TokAccelSTViTForImageClassification}
    family = type(SEMANTIC["vit"])(TokAccelSTViTConfig, models, SEMANTIC["vit"].adapt)
    monkeypatch.setitem(SEMANTIC, "vit", family)
    with pytest.raises(ValueError, match=r"TokAccelSTViTModel cannot be initialised from .*of model type 'vit': use"):
        TokAccelSTViTModel.from_pretrained(tmp_path)


def test_methods_do_not_mix(plain):
    clustered = ta.accelerate(plain, CLUSTERING)
    with pytest.raises(ValueError, match=r"method='semantic_tokens' is not valid for model type 'tokaccel_vit'"):
        type(clustered.config)(**{**clustered.config.to_dict(), "accel": SETTING})
    for function, what in ((ta.accelerate, clustered), (ta.accelerate_config, clustered.config)):
        with pytest.raises(ValueError, match=r"model type 'tokaccel_vit' clusters tokens.*to_native"):
            function(what, SETTING)


def test_a_head_gets_a_backbone_with_semantic_tokens():
    backbone = SwinConfig(image_size=56, embed_dim=8, depths=[1, 1, 6, 1], num_heads=[1, 1, 2, 2], window_size=7)
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = UperNetConfig(backbone_config=backbone, num_labels=3, hidden_size=8, auxiliary_channels=8)
    plain = UperNetForSemanticSegmentation(config).eval()
    with pytest.warns(UserWarning, match="are untrained"):
        model, report = initialize(plain, SemanticTokenConfig(recover=True))
    assert type(model) is UperNetForSemanticSegmentation
    assert model.config.backbone_config.model_type == "tokaccel_stvit_swin"
    assert plain.config.backbone_config.model_type == "swin"
    assert all("layer_scale" in name for name in report.untrained)
    # The position biases of layers that run on semantic tokens have no use any more.
    assert report.unused
    assert all("relative_position_bias_table" in name for name in report.unused)
    given = plain.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items() if name in given)
    assert model(torch.rand(1, 3, 64, 56)).logits.shape == (1, 3, 64, 56)
    same = ta.accelerate_config(config, SemanticTokenConfig(recover=True)).backbone_config
    assert same.accel == model.config.backbone_config.accel
