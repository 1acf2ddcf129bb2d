"""The benchmark on a real checkpoint runs, on a model that is tiny; schedules and fronts are exact."""

import json

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

from benchmarks.pretrained.__main__ import main, with_others
from benchmarks.pretrained.fronts import error_at
from benchmarks.pretrained.measure import relative_error
from benchmarks.pretrained.page import TITLES, against_table, aims, aims_table, among, methods_of
from benchmarks.pretrained.schedules import counts_of, grid_for, merged_counts, merged_for, share_of, steps_for
from benchmarks.pretrained.subject import PHOTOGRAPHS, WHEEL_NAME, photographs
from hf_tokaccel.checks import UserError
from hf_tokaccel.measure.flops import gflops_of_shape
from hf_tokaccel.rivals.merging import merge_in_layers
from hf_tokaccel.tuning.encoder import describe_encoder

CONFIG = Dinov2Config(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=112, use_mask_token=False)


def test_interpolates_the_logarithm_between_rows_that_no_other_beats():
    cheapness, errors = [1.2, 1.5, 1.6, 2.0], [0.01, 0.5, 0.04, 0.16]
    assert error_at(cheapness, errors, 1.4) == pytest.approx(0.02)
    assert error_at(cheapness, errors, 1.8) == pytest.approx(0.08)
    assert error_at(cheapness, errors, 1.0) == pytest.approx(0.01)  # faster than asked
    assert error_at(cheapness, errors, 2.1) is None
    assert error_at([], [], 1.5) is None


def test_relative_error_is_a_share_of_the_variance_over_places():
    theirs = torch.randn(1, 4, 8, 8) + 100 * torch.arange(4)[:, None, None]
    assert relative_error(theirs, theirs) == 0
    assert relative_error(theirs.mean((2, 3), keepdim=True).expand_as(theirs), theirs) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_schedules_take_the_share_of_the_flops_that_was_asked_for(share):
    encoder = describe_encoder(CONFIG, 448)
    clusters = steps_for(encoder, (1, 2, 4), share)
    assert share_of(encoder, counts_of(encoder, (1, 2, 4), clusters)) == pytest.approx(share, abs=0.005)
    ratios = torch.tensor([clusters[0] / 1024, clusters[1] / clusters[0], clusters[2] / clusters[1]])
    torch.testing.assert_close(ratios, ratios.mean().expand(3), rtol=0, atol=0.01)
    height, width = grid_for(encoder, 1, share)
    assert share_of(encoder, counts_of(encoder, (1,), (height * width,))) == pytest.approx(share, abs=0.02)
    assert steps_for(encoder, (3,), 0.3) is None  # the blocks before take half


def test_merging_costs_the_share_that_was_asked_for():
    encoder = describe_encoder(CONFIG, 448)
    count = merged_for(encoder, 0.6)
    share = share_of(encoder, merged_counts(encoder, count))
    model = Dinov2Model(CONFIG).eval()
    saved = gflops_of_shape(model, (448, 448)) - gflops_of_shape(merge_in_layers(model, count), (448, 448))
    assert share == pytest.approx(0.6, abs=0.01)
    # What finding pairs costs comes on top, and is small beside what they save even at 32 channels.
    assert 0.5 * (1 - share) < saved * 1e9 / encoder.flops < 1 - share


def test_photographs_come_with_the_packages():
    found = photographs()
    assert len(found) == sum(map(len, PHOTOGRAPHS.values())) == 10
    assert all(x.shape[0] == x.shape[1] and x.shape[2] == 3 for x in found.values())


def test_runs_on_a_folder(tmp_path, capsys):
    torch.manual_seed(0)
    Dinov2Model(CONFIG).save_pretrained(tmp_path / "tiny")
    ViTImageProcessor(size={"height": 112, "width": 112}).save_pretrained(tmp_path / "tiny")
    threads = torch.get_num_threads()
    options = [
        "--quick",
        "--cpu",
        "--workers",
        "2",
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "tiny"),
    ]
    assert main(options) == 0, capsys.readouterr().out
    assert torch.get_num_threads() == threads
    (path,) = (tmp_path / "out").glob("*.json")
    result = json.loads(path.read_text())
    assert result["checkpoint"] == "tiny"
    for row in result["rows"]:
        assert len(row["features"]) == len(row["cosine"]) == 2
        assert 0 < row["features"][0] < 10
        assert row["cheapness"]["blocks"] > 1
        assert "saliency" not in row
    timed = {row["method"] for row in result["rows"] if "time" in row["cheapness"]}
    assert set(methods_of(result)) - timed == {"exact agglomeration, five steps"}
    assert result["notes"] == []
    page = (tmp_path / "out" / "pretrained.md").read_text()
    assert all(title in page for title in TITLES.values())
    assert (tmp_path / "out" / "pretrained" / f"{path.stem.removeprefix('pretrained-')}.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "224"], "--size goes with --model"),
        (["--cpu", "--model", "/no/such/folder"], "--model /no/such/folder cannot be loaded"),
        (["--limit", "0"], "--limit 0 is not valid: give 1 or more"),
        (["--rounds", "0"], "--rounds 0 is not valid: give 1 or more"),
        (["--cpu", "--workers", "0"], "--workers 0 is not valid on cpu: give --workers 1"),
    ],
)
def test_refuses_what_cannot_run(options, message, capsys):
    assert main(options) != 0
    assert message in "".join(capsys.readouterr())


def made_up(method, errors, speed=2.0):
    cheapness = {"blocks": speed, "gflops": speed, "time": speed}
    return {"method": method, "of": "adaptive", "features": errors, "cosine": [0.9, 0.9], "cheapness": cheapness}


def test_says_which_aims_are_missed_and_where_a_rival_wins():
    rows = [
        made_up("lower resolution", [0.5, 0.5]),
        made_up("token merging", [0.02, 0.02]),
        made_up("adaptive, one step", [0.04, 0.01]),
    ]
    result = {"checkpoint": WHEEL_NAME, "photographs": ["astronaut", "coins"], "rows": rows}
    assert "| adaptive, one step | 0.0250, missed | 0.0250, missed | 0.0250, met | - |" in aims_table(result)
    assert "| adaptive, one step | token merging | **1.25** |" in against_table(result, "time")
    assert "| adaptive, one step | the best of lower resolution and released | 0.05 |" in against_table(result, "time")
    assert "0.0400, missed" in aims_table(among(result, ["astronaut"]))
    assert aims(result | {"checkpoint": "another"}) == []


def test_keeps_rows_of_other_methods_of_the_same_images(tmp_path):
    same = {"checkpoint": "x", "size": (28, 28), "photographs": ("coins",), "gflops": 1.0}
    before = json.loads(json.dumps(same | {"rows": [made_up("adaptive, one step", [1.0])]}))
    new = made_up("lower resolution", [1.0]) | {"of": "lower_resolution"}
    kept = with_others(same | {"rows": [new]}, before, tmp_path)
    assert methods_of(kept) == ["lower resolution", "adaptive, one step"]
    with pytest.raises(UserError, match="other images or another model"):
        with_others(same | {"rows": [new]}, before | {"gflops": 2.0}, tmp_path)
