"""What a user gives: whole numbers of any type, none that tensors cannot hold, and an error that is not a bug."""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DPTConfig
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel.checks import LARGEST, UserError, as_pair, brief, did_you_mean, is_int, is_number, nearest
from hf_tokaccel.cli import app
from hf_tokaccel.functional import cluster_tokens
from hf_tokaccel.scenes import SceneDataset

ROOT = Path(ta.__file__).parent
SETTING = {"cluster_after": 2, "cluster_grid": (4, 4)}


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16])
def test_whole_numbers_of_numpy_are_stored_as_ours(kind):
    values = {"cluster_after": kind(2), "cluster_grid": [kind(4), kind(5)], "window": kind(3), "neighbors": kind(7)}
    setting = ta.TokenClusteringConfig(**values, inverse_temperature=np.float32(2))
    stored = json.loads(json.dumps(setting.to_dict()))
    assert (stored["cluster_grid"], stored["window"], stored["neighbors"]) == ([4, 5], 3, 7)
    assert setting == ta.TokenClusteringConfig(
        cluster_after=2, cluster_grid=(4, 5), window=3, neighbors=7, inverse_temperature=2.0
    )
    semantic = ta.SemanticTokenConfig(token_grid=kind(3), base_layers=kind(2))
    assert json.loads(json.dumps(semantic.to_dict()))["token_grid"] == [3, 3]
    assert as_pair(kind(8)) == (8, 8)
    assert all(type(side) is int for side in as_pair((kind(8), kind(9))))


@pytest.mark.parametrize(
    "name", ["window", "neighbor_window", "neighbors", "iterations", "shared_frames", "cluster_grid"]
)
@pytest.mark.parametrize("value", [2**64 + 1, LARGEST + 2, 10**400])
def test_numbers_that_would_wrap_are_refused(name, value):
    with pytest.raises(UserError, match=rf"{name}=.* is not valid: .*no number above {LARGEST}|{name}=\(") as caught:
        ta.TokenClusteringConfig(**{**SETTING, name: value})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["window", "neighbor_window"])
def test_the_largest_window_is_every_cluster(name):
    tokens = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    found = [cluster_tokens(tokens, (4, 4), (2, 2), window=side).centroids for side in (9, LARGEST)]
    assert torch.equal(*found)
    assert getattr(ta.TokenClusteringConfig(**SETTING, **{name: LARGEST}), name) == LARGEST


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e21, 1e300, 10**400, 0, -1.0, True, "hot", [1]])
def test_temperatures_that_float32_cannot_hold_are_refused(value):
    with pytest.raises(UserError, match=r"inverse_temperature=.* is not valid: it must be 'auto' or a number above 0"):
        ta.TokenClusteringConfig(**SETTING, inverse_temperature=value)
    with pytest.raises(UserError, match="inverse_temperature"):
        cluster_tokens(torch.zeros(1, 4, 2), (2, 2), (1, 1), inverse_temperature=value)


@pytest.mark.parametrize("value", [1e-300, 1e20])
def test_temperatures_at_the_ends_are_finite(value):
    tokens = 1e3 * torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    assert cluster_tokens(tokens, (4, 4), (2, 2), inverse_temperature=value).centroids.isfinite().all()


def test_numpy_counts_elsewhere():
    scenes = SceneDataset("test", np.int64(2), (np.int32(16), np.uint8(24)), np.int64(3))
    assert torch.equal(scenes[1]["image"], SceneDataset("test", 2, (16, 24), 3)[1]["image"])
    config = DPTConfig()
    fast = ta.accelerate_config(config, {"cluster_after": np.int64(4), "cluster_grid": np.int64(8)}, np.int64(384))
    assert fast.accel["cluster_grid"] == [8, 8]
    with pytest.raises(UserError, match=r"speedup=inf is not valid"):
        ta.recommended(config, 384, math.inf)


def test_what_counts_as_a_number():
    assert not any(map(is_int, (True, np.bool_(True), 2.0, np.float64(2), "2", None, 2**31)))
    assert not any(map(is_number, (True, "2", None, math.nan, np.float32("inf"), 10**400)))
    assert all(map(is_number, (2, np.int8(2), 0.5, np.float16(0.5), -1e308)))


def test_names_that_are_near():
    known = ["cluster_after", "cluster_grid", "window"]
    assert nearest("cluster_afte", known) == "cluster_after"
    assert nearest("CLUSTER_GRID", known) == "cluster_grid"
    assert did_you_mean("windwo", known) == " (did you mean window?)"
    assert did_you_mean("temperature", known) == ""
    assert len(brief("x" * 9999)) == 200


def test_mistakes_of_the_user_have_their_own_type():
    """A plain ValueError is a bug to the command line."""
    raised = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ValueError":
                raised.setdefault(path.relative_to(ROOT).as_posix(), []).append(node.lineno)
    assert not raised


def run(monkeypatch, error, *arguments):
    def fail(path):
        raise error

    monkeypatch.setattr("hf_tokaccel.results.pareto.load_plot", fail)
    return CliRunner().invoke(app, arguments)


def test_the_command_line_tells_mistakes_from_bugs(monkeypatch):
    mistake = run(monkeypatch, UserError("no such\nthing"), "plot", "x.json")
    assert (mistake.exit_code, mistake.stderr) == (2, "error: no such thing\n")
    bug = run(monkeypatch, ValueError("max() arg is an empty sequence"), "plot", "x.json")
    assert isinstance(bug.exception, ValueError)
    assert not bug.stderr


@pytest.mark.parametrize("arguments", [("--debug", "plot", "x.json"), ("plot", "x.json", "--debug")])
def test_debug_shows_where_a_mistake_comes_from(monkeypatch, arguments):
    assert isinstance(run(monkeypatch, UserError("no such thing"), *arguments).exception, UserError)
    # The next command does not remember it.
    assert run(monkeypatch, UserError("no such thing"), "plot", "x.json").exit_code == 2
    # Behind -- it is a name like others.
    assert run(monkeypatch, UserError("no such thing"), "plot", "--", "--debug").exit_code == 2
