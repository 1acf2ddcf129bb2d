"""Folders, checkpoints and settings with anything in them: they load, or one line names the file and what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fuzzing import HOSTILE, damaged, mutations
from hub_client import make_base
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel.checkpoint import load_checkpoint
from hf_tokaccel.checks import UserError
from hf_tokaccel.cli import app
from hf_tokaccel.convert.base import read_checkpoint
from hf_tokaccel.convert.segmenter import convert
from hf_tokaccel.hub.card import read_result
from hf_tokaccel.results.pareto import load_plot
from hf_tokaccel.settings.methods import as_accel
from hf_tokaccel.tuning.text import parse_accel

# No sizes that a model could have, but not on this machine.
SMALL = [v for v in HOSTILE if not isinstance(v, (int, float)) or not 1000 < abs(v) <= 2**31]
ROOT = Path(__file__).parents[1]
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder


@pytest.fixture(scope="module")
def fast(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    model = load_checkpoint(base).model
    ta.accelerate(model, {"cluster_after": 1, "cluster_grid": 2}).save_pretrained(folder)
    return folder


def outcome(call, *says):
    """None where it works, or what its one error says; each of `says` stands in it."""
    try:
        call()
    except UserError as error:
        text = str(error)
        assert len(text) < 3000
        return text
    return None


def check_all(values, write, call, name):
    said = []
    for value in values:
        write(value)
        said.append(outcome(call))
    refused = [text for text in said if text is not None]
    assert [text for text in refused if name not in text] == []
    assert refused
    return len(said) - len(refused)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=SLOW)])
def test_configurations(fast, tmp_path, count):
    folder = shutil.copytree(fast, tmp_path / "model")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    values = mutations(content, count, hostile=SMALL)
    assert check_all(values, lambda v: path.write_text(json.dumps(v)), lambda: load_checkpoint(folder), str(folder))


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=SLOW)])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_damaged_files(base, tmp_path, name, count):
    folder = shutil.copytree(base, tmp_path / "model")
    path = folder / name
    values = damaged(path.read_bytes(), count)
    check_all(values, path.write_bytes, lambda: load_checkpoint(folder), str(folder))


@pytest.mark.parametrize("count", [120, pytest.param(20_000, marks=SLOW)])
def test_damaged_checkpoints_of_others(tmp_path, count):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a.weight": torch.ones(3, 2), "b": torch.ones(1)}}, path)
    check_all(damaged(path.read_bytes(), count), path.write_bytes, lambda: read_checkpoint(path), str(path))
    torch.save({"model": {"a.weight": torch.ones(3, 2)}}, path, _use_new_zipfile_serialization=False)
    check_all(damaged(path.read_bytes(), count), path.write_bytes, lambda: read_checkpoint(path), str(path))


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=SLOW)])
def test_settings(count):
    setting = {**ta.TokenClusteringConfig(cluster_after=1, cluster_grid=(2, 2)).to_dict(), "neighbor_window": 3}
    check_all(
        mutations(setting, count), lambda v: setattr(test_settings, "v", v), lambda: as_accel(test_settings.v), ""
    )
    for value in HOSTILE:
        for name in ("cluster_grid", "cluster_after", "window"):
            outcome(lambda value=value, name=name: parse_accel(f"{name}={value}"))
            outcome(lambda value=value, name=name: parse_accel(json.dumps({name: value})))


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=SLOW)])
def test_results(tmp_path, count):
    path = tmp_path / "result.json"
    content = json.loads((ROOT / "docs" / "evaluate_depth" / "result.json").read_text())
    content["rows"] = content["rows"][:2]
    assert check_all(mutations(content, count), lambda v: path.write_text(json.dumps(v)), lambda: load_plot(path), "")
    check_all(
        mutations(content, count), lambda v: path.write_text(json.dumps(v)), lambda: read_result(path), str(path)
    )


def refused(*arguments):
    """The one line that a command says."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", 100, "model.safetensors is damaged"),
        ("config.json", "[5]", "config.json holds [5], not the fields of a configuration"),
        ("config.json", "[" * 100_000, "config.json cannot be read as JSON"),
        (
            "config.json",
            {"architectures": ["Trainer"]},
            "config.json names Trainer in architectures, which says nothing",
        ),
        ("config.json", {"architectures": 5}, "config.json"),
        ("config.json", {"patch_size": 0}, "cannot be made of its files: ZeroDivisionError"),
        ("config.json", {"accel": {"method": []}}, "config.json is not valid: method=[] is not valid"),
        (
            "config.json",
            {"hidden_size": 10**399},
            "config.json: hidden_size is a number that no size of a model can be",
        ),
        ("preprocessor_config.json", "[5]", "preprocessor_config.json cannot be loaded"),
    ],
)
def test_a_folder_with_one_wrong_file(fast, base, tmp_path, name, content, says):
    folder = shutil.copytree(fast, tmp_path / "model")
    shutil.copy(base / "preprocessor_config.json", folder)
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content.encode())
    line = refused("accelerate", folder, "--out", tmp_path / "out", "--cluster-after", 1, "--cluster-grid", 2)
    assert says in line
    assert str(folder) in line


@pytest.mark.parametrize(
    ("accel", "says"),
    [
        ('{"a":' + "[" * 100_000, "is not JSON (maximum recursion depth exceeded"),
        ('{"a": ' + "9" * 5000, "is not JSON (Exceeds the limit"),
        ("cluster_after=" + "9" * 400 + ",cluster_grid=4", "cluster_after=a number of too many digits is not valid"),
        ("cluster_after=4,cluster_grid=²x²", "cluster_grid='²x²' is not valid"),
        ("cluster_afte=4,cluster_grid=4", "in accel (did you mean cluster_after?). Allowed"),
        ("cluster_after=1,cluster_grid=2,expansion=dleta", "for example expansion='delta'"),
        ("relased:dpt-kitti-16x16-after-5", "(did you mean released?)"),
        ("released:segmenter-ade20k-28x28-aftr-16", "(near it: segmenter-ade20k-28x28-after-16"),
    ],
)
def test_a_setting_that_is_wrong(base, tmp_path, accel, says):
    line = refused("accelerate", base, "--out", tmp_path / "out", "--accel", accel)
    assert says in line
    assert len(line) < 1500


def test_checkpoints_of_others_that_are_none(tmp_path):
    checkpoint, variant = tmp_path / "checkpoint.pth", tmp_path / "variant.yml"
    variant.write_text("net_kwargs: " + "[" * 20_000)
    checkpoint.write_text("a text file")
    with pytest.raises(UserError, match=r"checkpoint\.pth is not a PyTorch checkpoint"):
        convert(checkpoint, variant)
    torch.save({"model": {"encoder.cls_token": torch.ones(1)}}, checkpoint)
    for text in (
        "net_kwargs: " + "[" * 20_000,
        "a: 2020-13-45",
        "a: " + "9" * 5000,
        "a: !!python/object:os.system {}",
    ):
        variant.write_text(text)
        with pytest.raises(UserError, match=r"variant\.yml is not valid YAML: "):
            convert(checkpoint, variant)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nosuch", "folder './nosuch' does not exist"),
        ("/no/such", "folder '/no/such' does not exist"),
        ("dpth", "model 'dpth' is not known (did you mean depth?)"),
        ("panoptc", "model 'panoptc' is not known (did you mean panoptic?)"),
        (__file__, "is a file"),
    ],
)
def test_models_that_are_none(tmp_path, name, says):
    assert says in refused("accelerate", name, "--out", tmp_path / "out")


def test_support_is_asked_before_the_image_size(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "embedding_size": 8}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(tmp_path / "resnet")
    for command in (
        ("accelerate", tmp_path / "resnet", "--out", tmp_path / "out"),
        ("tune", tmp_path / "resnet", "--gflops", "0.5"),
    ):
        assert "model type 'resnet' cannot be accelerated" in refused(*command)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("models", "dptt"), "no model type or class holds 'dptt' (did you mean dpt?)"),
        (("presets", "segmentr"), "no preset holds 'segmentr' (did you mean"),
        (("show", "astronat"), "(did you mean astronaut?)"),
        (("show", "EMPTY"), "is a folder, and there is no file in it"),
        (("bench", "dpt-larg-384"), "model 'dpt-larg-384' is not known (did you mean dpt-large-384?)"),
        (("evaluate", "instnces"), "model 'instnces' is not known (did you mean instances?)"),
        (("evaluate", "depth", "--images", "EMPTY", "--cpu"), "is a folder, and there is no file in it"),
        (("evaluate", "segmentation", "--dataset", "ade20:x", "--cpu"), "(did you mean ade20k?)"),
        (("evaluate", "segmentation", "--dataset", "scens", "--cpu"), "(did you mean scenes?)"),
        (("evaluate", "panoptic", "--dataset", "coc:x", "--cpu"), "(did you mean coco?)"),
        (("evaluate", "depth", "--split", "tset", "--cpu"), "(did you mean test?)"),
        (("tune", "depth", "--gflops", "0.5", "--images", "EMPTY"), "holds no image file"),
    ],
)
def test_the_nearest_right_name(tmp_path, arguments, says):
    assert says in refused(*(str(tmp_path) if word == "EMPTY" else word for word in arguments))
