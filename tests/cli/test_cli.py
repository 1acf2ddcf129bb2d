"""The commands that make, measure and publish folders, as a user calls them; test_hub.py has the way to the Hub."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from hub_client import depth, make_base
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForDepthEstimation
from typer.main import get_command
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel.checkpoint import load_checkpoint
from hf_tokaccel.cli import app
from hf_tokaccel.cli.evaluate import guess_task
from hf_tokaccel.evaluation.scripts import EVALUATIONS

SETTING = ("--cluster-after", "1", "--cluster-grid", "2x2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder


@pytest.fixture(scope="module")
def fast(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    assert run("accelerate", base, "--out", folder, *SETTING).exit_code == 0
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments):
    """What a command says of the user's mistake: one line, and nothing else."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.stdout == ""
    return line


def test_commands_show_examples_in_their_help():
    commands = get_command(app).commands
    assert {"accelerate", "convert", "evaluate", "models", "presets", "push"} <= set(commands)
    for name in ("accelerate", "evaluate", "models", "presets", "push"):
        done = run(name, "--help")
        assert done.exit_code == 0
        assert f"hf_tokaccel {name}" in done.stdout


def test_models_lists_what_is_supported():
    listed = json.loads(run("models", "--json").stdout)
    assert [entry["model_type"] for entry in listed] == sorted(ta.FAMILIES)
    assert json.loads(run("models", "sam", "--json").stdout)[0]["classes"] == ["TokAccelSamModel"]
    adaptive = {model["model_type"]: model["adaptive"] for model in listed}
    takes = {name: adaptive[name] for name in ("dpt", "clip", "sam", "swin", "upernet")}
    assert takes == {"dpt": True, "clip": True, "sam": False, "swin": False, "upernet": None}
    assert "depth_anything" in run("models", "depth").stdout
    assert "holds 'resnet'" in refused("models", "resnet")


def test_accelerate_writes_a_folder_that_loads(base, fast):
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "tokaccel_hub.py", "README.md"}
    assert {path.name for path in fast.iterdir()} == names
    model = AutoModelForDepthEstimation.from_pretrained(fast)
    native = AutoModelForDepthEstimation.from_pretrained(base)
    assert depth(model) == depth(ta.accelerate(native, ta.TokenClusteringConfig(cluster_after=1, cluster_grid=(2, 2))))
    assert depth(model) != depth(native)


@pytest.fixture
def blocks_only(monkeypatch):
    """Ratios of the blocks: nearly all of the tiny model is its head, which nothing accelerates."""
    monkeypatch.setattr("hf_tokaccel.tuning.recommended.whole_flops", lambda *args: None)


def test_accelerate_without_a_setting_says_what_it_chose(blocks_only, base, tmp_path):
    done = run("accelerate", base, "--out", tmp_path / "half", "--json")
    chosen = json.loads(done.stdout)
    assert chosen["chosen"] is False
    config = AutoConfig.from_pretrained(base)
    recommended = ta.recommended(config, 32, 1.5)
    assert chosen["accel"] == ta.accelerate_config(config, recommended).accel
    assert "note: no setting was given" in run("accelerate", base, "--out", tmp_path / "text").stdout


def test_accelerate_takes_presets(blocks_only, base, tmp_path):
    done = run("accelerate", base, "--out", tmp_path / "a", "--accel", "recommended:1.25,neighbors=3", "--json")
    config = AutoConfig.from_pretrained(base)
    recommended = ta.recommended(config, 32, 1.25, neighbors=3)
    assert json.loads(done.stdout)["accel"] == ta.accelerate_config(config, recommended).accel
    refusals = {"recommended:99": "speedup=99.0 cannot be reached", "released:dpt": "near it: dpt-kitti-28x28-after-7"}
    for accel, says in refusals.items():
        assert says in refused("accelerate", base, "--out", tmp_path / "b", "--accel", accel)
    too_large = ("--accel", "released:dpt-nyuv2-14x14-after-3", "--image-size", "32x32")
    assert "at most as many clusters as tokens" in refused("accelerate", base, "--out", tmp_path / "b", *too_large)


def test_accelerate_takes_a_whole_setting_and_replaces_a_stored_one(fast, tmp_path):
    (tmp_path / "setting.json").write_text('{"cluster_after": 2, "cluster_grid": [3, 2], "expansion": "soft"}')
    done = run("accelerate", fast, "--out", tmp_path / "out", "--accel", tmp_path / "setting.json", "--json")
    assert json.loads(done.stdout)["accel"]["cluster_grid"] == [3, 2]
    text = run("accelerate", fast, "--out", tmp_path / "b", "--accel", "cluster_after=2,cluster_grid=3x2,window=3")
    assert "grid clusters 3x2 after 2 blocks, expansion=nearest" in text.stdout


def test_accelerate_takes_adaptive_clusters(base, tmp_path):
    done = run("accelerate", base, "--out", tmp_path / "a", "--cluster-after", "1", "--clusters", "0.5")
    assert "adaptive clusters 0.5 after 1 blocks, expansion=delta" in done.stdout
    steps = ("--cluster-after", "1/2", "--clusters", "0.8/4")
    done = run("accelerate", base, "--out", tmp_path / "b", *steps, "--json")
    accel = json.loads(done.stdout)["accel"]
    assert (accel["cluster_after"], accel["clusters"], accel["cluster_grid"]) == ([1, 2], [0.8, 4], None)
    loaded = AutoModelForDepthEstimation.from_pretrained(tmp_path / "b")
    native = AutoModelForDepthEstimation.from_pretrained(base)
    setting = ta.TokenClusteringConfig(cluster_after=(1, 2), clusters=(0.8, 4))
    assert depth(loaded) == depth(ta.accelerate(native, setting))
    card = (tmp_path / "b" / "README.md").read_text()
    assert "[0.8, 4]" in card
    assert "with adaptive token clustering" in card


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--cluster-after", "1"), "go together"),
        (("--cluster-after", "1", "--cluster-grid", "2", "--clusters", "0.5"), "go together"),
        (("--cluster-after", "1", "--clusters", "half"), "'half' must be a number or several"),
        (("--cluster-after", "1/2", "--cluster-grid", "2"), "several steps need clusters"),
        (("--accel", "cluster_after=1,clusters=0.5", "--clusters", "0.5"), "leave out --cluster-after"),
        (("--cluster-after", "1", "--cluster-grid", "2by2"), "'2by2' must be HEIGHTxWIDTH"),
        ((*SETTING, "--accel", "cluster_after=1,cluster_grid=2"), "leave out --cluster-after"),
        (("--cluster-after", "9", "--cluster-grid", "2"), "cluster_after=9"),
        ((*SETTING, "--image-size", "8x8"), "cluster_grid=(2, 2)"),
        ((*SETTING, "--dtype", "int8"), "dtype='int8' must be one of"),
        ((*SETTING, "--auto-class", "AutoModelForCausalLM"), "does not load model type 'dpt'"),
        ((*SETTING, "--auto-class", "AutoModelForSemanticSegmentation"), "lacks"),
    ],
)
def test_accelerate_refuses(base, tmp_path, arguments, says):
    assert says in refused("accelerate", base, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_accelerate_names_what_cannot_be_loaded(base, fast, tmp_path):
    assert "'no/such-model' cannot be loaded" in refused("accelerate", "no/such-model", "--out", tmp_path / "out")
    assert "has no config.json" in refused("accelerate", tmp_path, "--out", tmp_path / "out")
    assert "is not empty" in refused("accelerate", base, "--out", fast)


def test_weights_that_no_forward_reads_may_be_missing_and_no_others(base, tmp_path):
    # Intel/dpt-large and its relatives lack this unit of the first fusion layer.
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    state = load_file(base / "model.safetensors")
    unread = {name for name in state if "fusion_stage.layers.0.residual_layer1." in name}
    assert unread
    save_file({n: w for n, w in state.items() if n not in unread}, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_checkpoint(tmp_path).model
    assert depth(model) == depth(load_checkpoint(base).model)
    read = {name for name in state if "fusion_stage.layers.1.residual_layer1." in name}
    save_file({n: w for n, w in state.items() if n not in read}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks .* fusion_stage\.layers\.1\.residual_layer1|lacks"):
        load_checkpoint(tmp_path)


def test_push_checks_the_folder_before_it_asks_the_hub(base, fast, tmp_path):
    assert "plain 'dpt' model" in refused("push", base, "me/x", "--not-measured")
    assert "is not a folder" in refused("push", tmp_path / "none", "me/x")
    assert "has no results for its card" in refused("push", fast, "me/x")
    assert "exclude each other" in refused("push", fast, "me/x", "--not-measured", "--results", "r.json")
    assert "r.json cannot be read" in refused("push", fast, "me/x", "--results", "r.json")
    broken = shutil.copytree(fast, tmp_path / "broken")
    (broken / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refused("push", broken, "me/x", "--not-measured")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors is damaged" in refused("push", broken, "me/x", "--not-measured", "--no-processor")


def test_push_without_a_token_or_a_network(fast, monkeypatch):
    monkeypatch.setattr("hf_tokaccel.hub.upload.get_token", lambda: None)
    assert "no token for the Hub" in refused("push", fast, "me/x", "--not-measured")
    # Tests run with HF_HUB_OFFLINE=1.
    assert "offline mode" in refused("push", fast, "me/x", "--not-measured", "--token", "hf_nobody")


def test_a_bug_is_no_mistake_of_the_user(fast, monkeypatch):
    def fail(folder, processor):
        raise KeyError("bug")

    monkeypatch.setattr("hf_tokaccel.hub.files.check_folder", fail)
    assert isinstance(run("push", fast, "me/x").exception, KeyError)


def test_evaluate_fills_the_card(fast, tmp_path):
    folder = shutil.copytree(fast, tmp_path / "measured")
    options = ("--limit", "2", "--rounds", "1", "--pictures", "0", "--cpu")
    done = run("evaluate", folder, *options, "--output", folder, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "result.json").read_text())
    assert [row["kind"] for row in result["rows"]][:2] == ["dense", "clusters"]
    assert refused("push", folder, "me/x", "--token", "hf_nobody")
    text = (folder / "README.md").read_text()
    assert "Not measured" not in text
    assert result["rows"][1]["name"] in text


def test_evaluate_finds_the_task_or_asks(fast):
    assert [guess_task(name) for name in (fast, "depth", "segmentation")] == ["depth", "depth", "segmentation"]
    with pytest.raises(ValueError, match="several evaluations fit: name panoptic or instances"):
        guess_task("panoptic")
    assert "--limit 0 must be at least 1" in refused("evaluate", "depth", "--limit", "0")


@pytest.mark.parametrize("task", EVALUATIONS)
def test_evaluate_lists_every_option_of_a_task(task):
    done = run("evaluate", task, "--help")
    assert done.exit_code == 0
    for option in fields(EVALUATIONS[task]):
        assert f"--{option.name.replace('_', '-')} " in done.stdout
    assert f"hf_tokaccel evaluate {task}" in done.stdout
    assert run("evaluate", task, "--no-such-option").exit_code == 2


def test_evaluate_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from hf_tokaccel.cli import app; "
        "assert CliRunner().invoke(app, ['evaluate', 'depth', '--help']).exit_code == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], {"images": None, "compile": None, "ignore_label": [255]}),
        (["--images", "--cpu"], {"images": [], "cpu": True}),
        (["--images", "a.png", "b.png", "--compile"], {"images": ["a.png", "b.png"], "compile": "inductor"}),
        (["--compile", "eager", "--images"], {"images": [], "compile": "eager"}),
        (["--ignore-label", "0", "-1", "--reduce-labels"], {"ignore_label": [0, -1], "reduce_labels": True}),
        (["--ignore-label", "--accel", "none", "--accel", "recommended:2"], {"accel": ["none", "recommended:2"]}),
        (["--ignore-label"], {"ignore_label": []}),
    ],
)
def test_options_with_no_one_or_several_values(monkeypatch, given, found):
    options = []
    monkeypatch.setattr("hf_tokaccel.evaluation.script.run", options.append)
    assert run("evaluate", "segmentation", *given).exit_code == 0
    assert {name: getattr(options[0], name) for name in found} == found


def test_dtype(base):
    assert load_checkpoint(base, dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--accel", "cluster_after=2,cluster_grid=99x99"), "at most as many clusters as tokens"),
        (("--accel", "cluster_after=2,clusters=99999"), "at most as many clusters as tokens"),
        (("--cluster-after", "2", "--cluster-grid", "4x4", "--image-size", "390x391"), "multiples of the patch size"),
    ],
)
def test_accelerate_writes_nothing_that_could_not_run(tmp_path, options, message):
    assert message in refused("accelerate", "depth", "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
