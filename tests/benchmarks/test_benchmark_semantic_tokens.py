"""The benchmark of semantic tokens runs, on models that are tiny; no time is judged."""

import json

import pytest
import torch
from transformers import AutoConfig, SwinConfig, ViTConfig

import hf_tokaccel as ta
from benchmarks import semantic_tokens
from benchmarks.semantic_tokens import Pair, main, markdown, pairs

TINY = {
    "tiny STViT": Pair(
        "tiny ViT",
        ViTConfig(
            image_size=64,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=3,
        ),
        {"token_grid": 2},
        "+1 %",
        target=1e-6,
    ),
    "tiny STViT-R": Pair(
        "tiny Swin",
        SwinConfig(
            image_size=56,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1, 6],
            num_heads=[1, 2, 4],
            window_size=7,
            num_labels=3,
        ),
        {"recover": True},
        target=1e6,
    ),
}


def test_compares_every_pair_at_every_batch_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    threads = torch.get_num_threads()
    path = main(["--rounds", "2", "--batches", "1", "3", "--processor-time", "--output", "result"], TINY)
    assert torch.get_num_threads() == threads
    result = json.loads(path.read_text())
    assert path == tmp_path / "result.json"
    assert result["machine"]["threads"] == 1
    assert result["setting"]["clock"] == "processor time, 1 thread"
    for name, pair in TINY.items():
        assert [row["batch"] for row in result["rows"][name]] == [1, 3]
        for row in result["rows"][name]:
            base, ours = row["gflops"]
            assert ours < base
            assert row["accel"] == ta.accelerate_config(pair.config, {"method": "semantic_tokens", **pair.accel}).accel
            assert row["speedup"]["p25"] <= row["speedup"]["median"] <= row["speedup"]["p75"]
            for kind, seconds in row["seconds"].items():
                # Six digits are written.
                assert row["images_per_second"][kind] == pytest.approx(row["batch"] / seconds["median"], rel=1e-5)
    printed = capsys.readouterr().out
    assert printed.count("0.0x: reached") == 2
    assert printed.count("1000000.0x: not reached") == 2


def test_speed_is_that_of_the_base_by_ours(monkeypatch):
    """With times that are given."""
    times = {"base": [4.0, 6.0, 8.0], "ours": [2.0, 3.0, 2.0]}
    monkeypatch.setattr(semantic_tokens, "interleaved", lambda functions, rounds, clock: times)
    place = semantic_tokens.Place(torch.device("cpu"), torch.float32)
    (row,) = semantic_tokens.measure(TINY["tiny STViT"], [6], 3, place)
    assert row["speedup"] == {"median": 2.0, "p25": 2.0, "p75": 3.0}
    assert row["images_per_second"] == {"base": 1.0, "ours": 3.0}
    cells = [cell.strip() for cell in markdown({"model": [row]}).splitlines()[2].split("|")[1:-1]]
    assert cells[:7] == ["model", "6", "tiny ViT", "1.0", "3.0", "2.00x", "2.00 to 3.00"]


def test_models_run_compiled_and_in_half_precision(monkeypatch):
    compiled = []
    monkeypatch.setattr(semantic_tokens, "compile_model", lambda model: compiled.append(model) or model)
    place = semantic_tokens.Place(torch.device("cpu"), torch.bfloat16, compiled=True)
    rows = semantic_tokens.measure(TINY["tiny STViT"], [1], 2, place)
    assert [type(model).__name__ for model in compiled] == [
        "ViTForImageClassification",
        "TokAccelSTViTForImageClassification",
    ]
    assert {parameter.dtype for model in compiled for parameter in model.parameters()} == {torch.bfloat16}
    assert markdown({"model": rows})


@pytest.mark.parametrize("name", pairs())
def test_settings_of_the_pairs_fit_their_models(name):
    pair = pairs()[name]
    config = ta.accelerate_config(pair.config, {"method": "semantic_tokens", **pair.accel})
    assert config.model_type in ("tokaccel_stvit", "tokaccel_stvit_swin")
    assert AutoConfig.for_model(pair.config.model_type).image_size == pair.config.image_size == 224


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rounds", "1"], "--rounds 5"),
        (["--batches", "0"], "--batches 0"),
        (["--processor-time", "--device", "cuda"], "--device is cuda"),
    ],
)
def test_refuses_what_cannot_be_timed(given, message, capsys):
    with pytest.raises(SystemExit):
        main(given, TINY)
    assert message in " ".join(capsys.readouterr().err.split())
