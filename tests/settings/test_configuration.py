import dataclasses
import json

import pytest
import torch
from transformers import Dinov2Config, DPTConfig, ViTConfig

from hf_tokaccel import TokenClusteringConfig, accelerate_config
from hf_tokaccel.functional import cluster_tokens, plan_reconstruction

GOOD = {"cluster_after": 6, "cluster_grid": (16, 16)}


def test_is_frozen_and_survives_json():
    setting = TokenClusteringConfig(**GOOD, reconstruct_after=11, expansion="delta", neighbor_window=7)
    assert TokenClusteringConfig.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting
    with pytest.raises(dataclasses.FrozenInstanceError):
        setting.window = 7


def test_one_side_is_a_square():
    assert TokenClusteringConfig(cluster_after=6, cluster_grid=16).cluster_grid == (16, 16)


@pytest.mark.parametrize(
    ("name", "value", "works"),
    [
        ("cluster_after", -1, "cluster_after=6"),
        ("cluster_after", 1.5, "cluster_after=6"),
        ("cluster_after", True, "cluster_after=6"),
        ("cluster_grid", (16,), r"cluster_grid=\(16, 16\)"),
        ("cluster_grid", (16, -1), r"cluster_grid=\(16, 16\)"),
        ("cluster_grid", "16x16", r"cluster_grid=\(16, 16\)"),
        ("reconstruct_after", 6, "reconstruct_after=7"),
        ("iterations", -1, "iterations=5"),
        ("inverse_temperature", 0, "inverse_temperature='auto'"),
        ("inverse_temperature", float("inf"), "inverse_temperature='auto'"),
        ("inverse_temperature", "warm", "inverse_temperature='auto'"),
        ("window", 4, "window=5"),
        ("window", 0, "window=5"),
        ("neighbors", 0, "neighbors=20"),
        ("neighbors", -2, "neighbors=20"),
        ("neighbor_window", 6, "neighbor_window=7"),
        ("normalization", "l3", "normalization='l1'"),
        ("expansion", "hard", "expansion='soft'"),
        ("similarity_on", "keys", "similarity_on='tokens'"),
        ("decode_clusters", "yes", "decode_clusters=None"),
        ("method", "merging", "method='token_clustering'"),
    ],
)
def test_every_bad_value_is_named_with_one_that_works(name, value, works):
    with pytest.raises(ValueError, match=f"{name}=.*must be .*for example {works}"):
        TokenClusteringConfig(**{**GOOD, name: value})


def refusal(function, *args, **values):
    with pytest.raises(ValueError, match="is not valid: it must be") as refused:
        function(*args, **values)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster_grid", (16, -1)),
        ("cluster_grid", "16x16"),
        ("cluster_grid", True),
        ("iterations", 1.5),
        ("inverse_temperature", 0),
        ("inverse_temperature", float("inf")),
        ("window", 4),
        ("window", True),
    ],
)
def test_the_functions_refuse_what_clustering_settings_do_in_the_same_words(name, value):
    given = {"cluster_grid": (2, 2), name: value}
    said = refusal(cluster_tokens, torch.zeros(2, 12, 4), (3, 4), **given)
    assert said == refusal(TokenClusteringConfig, **{**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("neighbors", 0), ("neighbors", 2.0), ("neighbors", True), ("inverse_temperature", "cold")],
)
def test_the_functions_refuse_what_reconstruction_settings_do_in_the_same_words(name, value):
    said = refusal(plan_reconstruction, torch.zeros(2, 12, 4), torch.zeros(2, 4, 4), **{name: value})
    assert said == refusal(TokenClusteringConfig, **{**GOOD, name: value})


def test_the_stored_dict_ends_with_method_and_version():
    assert list(TokenClusteringConfig(**GOOD).to_dict())[-2:] == ["method", "version"]


def test_delta_refuses_weights_that_do_not_sum_to_one():
    with pytest.raises(ValueError, match="'l1' when expansion='delta'"):
        TokenClusteringConfig(**GOOD, expansion="delta", normalization="l2")


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"unknown keys \['clusterz'\] .*written by hf_tokaccel 9\.9"):
        TokenClusteringConfig.from_dict({**GOOD, "clusterz": 4, "version": "9.9"})
    with pytest.raises(ValueError, match=r"neither cluster_grid nor clusters is given.*for example"):
        TokenClusteringConfig.from_dict({"cluster_after": 6})


@pytest.mark.parametrize(
    ("given", "expansion", "normalization"),
    [
        ({}, "nearest", "l2"),
        ({"expansion": "soft"}, "soft", "l2"),
        ({"expansion": "delta"}, "delta", "l1"),
        ({"normalization": "l1"}, "nearest", "l1"),
    ],
)
def test_what_is_left_open_follows_the_family(given, expansion, normalization):
    resolved = TokenClusteringConfig(**GOOD, **given).resolve("nearest", "l2")
    assert (resolved.expansion, resolved.normalization) == (expansion, normalization)


@pytest.mark.parametrize(
    ("given", "decodes"),
    [
        ({}, True),
        ({"expansion": "nearest"}, True),
        ({"decode_clusters": False}, False),
        ({"expansion": "delta"}, False),
        ({"expansion": "delta", "decode_clusters": True}, True),
        ({"reconstruct_after": 9}, False),
        ({"reconstruct_after": 9, "decode_clusters": False}, False),
    ],
)
def test_a_decoder_runs_on_clusters_where_it_can_unless_told_otherwise(given, decodes):
    assert TokenClusteringConfig(**GOOD, **given).resolve("soft", "l2", True).decode_clusters is decodes


def test_a_decoder_cannot_run_on_clusters_that_are_gone():
    with pytest.raises(ValueError, match=r"decode_clusters=True .*with reconstruct_after"):
        TokenClusteringConfig(**GOOD, reconstruct_after=9, decode_clusters=True)


@pytest.mark.parametrize("choice", [True, False])
def test_a_family_without_such_a_decoder_refuses_the_choice(choice):
    setting = TokenClusteringConfig(**GOOD, decode_clusters=choice)
    assert TokenClusteringConfig(**GOOD).resolve("soft", "l2").decode_clusters is None
    for config in (DPTConfig(), Dinov2Config(), ViTConfig(image_size=512)):
        with pytest.raises(ValueError, match=rf"decode_clusters={choice} .*only Segmenter.*decode_clusters=None"):
            accelerate_config(config, setting)


def test_a_grid_that_does_not_fit_is_refused_with_one_that_does():
    TokenClusteringConfig(cluster_after=4, cluster_grid=(28, 28)).check_grid((22, 76))  # KITTI: taller than the tokens
    with pytest.raises(ValueError, match=r"22 x 22 = 484, not 784.*cluster_grid=\(15, 15\)"):
        TokenClusteringConfig(cluster_after=4, cluster_grid=(28, 28)).check_grid((22, 22))
