"""Folders that a model is saved over, whenever the process is killed."""

import ast
import shutil

import pytest
import torch
from hub_client import make_base
from killing import kill_everywhere
from safetensors.torch import load_file
from transformers import AutoConfig, DPTForDepthEstimation

import hf_tokaccel as ta


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two of one architecture, with other weights and other settings."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    native = DPTForDepthEstimation.from_pretrained(folder)
    first = ta.accelerate(native, {"cluster_after": 1, "cluster_grid": 2})
    second = ta.accelerate(DPTForDepthEstimation(native.config), {"cluster_after": 2, "cluster_grid": 3})
    return first, second


def weights(path):
    return load_file(path)["head.head.0.weight"]


def test_killed_at_every_point_of_saving(models, tmp_path):
    first, second = models
    first.save_pretrained(tmp_path / "before")
    (tmp_path / "before" / "README.md").write_text("mine")
    folder, found = tmp_path / "folder", []
    states = [model.state_dict()["head.head.0.weight"] for model in models]

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "before", folder)

    def check(count):
        stored = weights(folder / "model.safetensors")
        (number,) = [number for number, state in enumerate(states) if torch.equal(stored, state)]
        (said,) = [
            n for n, model in enumerate(models) if AutoConfig.from_pretrained(folder).accel == model.config.accel
        ]
        ast.parse((folder / "tokaccel_hub.py").read_text())
        assert (folder / "README.md").read_text() == "mine"
        found.append((number, said))

    assert kill_everywhere(prepare, lambda: second.save_pretrained(folder), check) > 5
    assert found == sorted(found)
    assert (found[0], found[-1]) == ((0, 0), (1, 1))
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokaccel_hub.py",
    }


def test_shards_of_an_older_save_do_not_stay(models, tmp_path):
    first, second = models
    for model, options in ((first, {"max_shard_size": "20KB"}), (second, {}), (first, {"max_shard_size": "20KB"})):
        model.save_pretrained(tmp_path, **options)
        files = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("model"))
        assert (files == ["model.safetensors"]) == (not options)
        again = type(model).from_pretrained(tmp_path)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_saved_leaves_all_as_it_was(models, tmp_path, monkeypatch):
    first, second = models
    first.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        second.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
