"""The benchmark of quality at equal speed: its arithmetic on made-up rows, and a short run."""

import json

import pytest
import torch

from benchmarks.quality import __main__ as command
from benchmarks.quality import measure, page
from benchmarks.quality.claim import Curve, claims, front, losses_of, make_curve, spread
from benchmarks.quality.measure import choose, curves_of, task_of


def column(*values: float) -> torch.Tensor:
    """Losses of points without draws, (points, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_front_leaves_out_what_another_point_beats():
    assert front([1.0, 1.5, 1.4, 2.0, 1.8], [0.0, 0.3, 0.4, 0.5, 0.5]) == [0, 1, 3]
    assert front([1.0, 1.2], [0.0, -0.1]) == [1]


@pytest.mark.parametrize(
    ("cheapness", "losses", "message"),
    [
        ([], [], "one of each"),
        ([1.0, 2.0], [0.0], "one of each"),
        ([1.0, 0.0], [0.0, 0.1], "cheapness holds 0.0"),
        ([1.0, 2.0], [0.0, float("nan")], "losses holds nan"),
    ],
)
def test_front_refuses(cheapness, losses, message):
    with pytest.raises(ValueError, match=message):
        front(cheapness, losses)


def test_losses_are_interpolated_between_neighbours_only():
    curve = make_curve([1.5, 2.0], [0.2, 0.6], column(0.4, 0.8))
    assert curve.cheapness == (1.0, 1.5, 2.0)
    for speed, loss in ((1.0, 0.0), (1.25, 0.2), (1.5, 0.4), (1.75, 0.6), (2.0, 0.8)):
        assert curve.at(speed).item() == pytest.approx(loss)
    assert curve.at(2.01) is None


def test_validation_decides_which_points_count_and_test_what_they_lose():
    # The second point looks worse than the first on the test scenes, but was not chosen by them.
    curve = make_curve([1.5, 1.6], [0.3, 0.1], column(0.1, 0.4))
    assert curve.cheapness == (1.0, 1.6)
    assert curve.at(1.6).item() == pytest.approx(0.4)
    # A point that is better than dense, too, makes dense pointless: slower is the same point.
    curve = make_curve([1.5], [-0.1], column(0.2))
    assert curve.at(1.1).item() == curve.at(1.5).item() == pytest.approx(0.2)


def test_curve_refuses_losses_of_other_points():
    with pytest.raises(ValueError, match="losses of 1 points for 2"):
        make_curve([1.5, 2.0], [0.1, 0.2], column(0.1))


def curves(ours: float, released: float, smaller: float) -> dict[str, Curve]:
    values = {"ours": ours, "released": released, "lower resolution": smaller}
    return {name: make_curve([2.0], [1.0], column(loss)) for name, loss in values.items()}


def test_claim_compares_losses_at_equal_speed():
    (line,) = claims(curves(0.5, 1.0, 0.6), [2.0])
    assert line["reduction"]["value"] == pytest.approx(0.5)
    assert line["gain"]["value"] == pytest.approx(0.5)
    assert line["met"] is True
    assert line["lower resolution better"] is False
    (line,) = claims(curves(0.65, 1.0, 0.6), [2.0])
    assert line["met"] is False
    assert line["lower resolution better"] is True


def test_claim_says_where_there_is_nothing_to_reduce_or_to_reach():
    (free, beyond) = claims(curves(0.1, -0.1, 0.6), [2.0, 2.1])
    assert free["reduction"] is None
    assert free["met"] is None
    assert free["gain"]["value"] == pytest.approx(-0.2)
    assert set(beyond["loss"].values()) == {None}
    with pytest.raises(ValueError, match="no curve of released"):
        claims({"ours": curves(1, 1, 1)["ours"]})


def test_there_is_no_reduction_where_the_released_loss_may_be_none():
    ours, sure = torch.full((1, 101), 0.5), torch.full((1, 101), 1.0)
    unsure = sure.clone()
    unsure[0, 1:20] = -0.1
    for released, known in ((sure, True), (unsure, False)):
        pair = {"ours": make_curve([2.0], [1.0], ours), "released": make_curve([2.0], [1.0], released)}
        (line,) = claims(pair, [2.0])
        expected = {"value": 0.5, "interval": [0.5, 0.5]} if known else None
        assert line["reduction"] == expected
        assert line["met"] is (True if known else None)


def test_every_row_is_resampled_by_the_same_draws():
    torch.manual_seed(0)
    images = torch.rand(40, dtype=torch.float64)
    ones = torch.ones(40, dtype=torch.float64)
    # The second row loses exactly 0.1 on every image: paired draws leave no doubt, although images differ.
    sums = torch.stack([torch.stack([images + shift, ones], dim=1) for shift in (0.0, 0.1)])
    values, losses = losses_of(sums, lambda s: s[..., 0] / s[..., 1], more_is_better=False, resamples=50)
    assert values.shape == losses.shape == (2, 51)
    assert values[0].std() > 0.01
    torch.testing.assert_close(losses[1], torch.full((51,), 10.0, dtype=torch.float64))
    # Where more is better, the same difference is a gain.
    assert losses_of(sums, lambda s: s[..., 0] / s[..., 1], True, resamples=0)[1][1].tolist() == pytest.approx([-10.0])


def test_images_without_a_label_do_not_count():
    sums = torch.tensor([[[2.0, 1.0], [0.0, 0.0]], [[3.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    values, _ = losses_of(sums, lambda s: s[..., 0] / s[..., 1], more_is_better=False, resamples=10)
    assert values.tolist() == [[2.0] * 11, [3.0] * 11]


def test_spread_keeps_both_ends():
    cheapness = [1.1, 1.2, 1.25, 1.6, 2.0, 4.0]
    assert spread([0, 1, 2, 3, 4, 5], cheapness, 3) == [0, 4, 5]
    assert spread([0, 5], cheapness, 3) == [0, 5]


def swept(kind: str, ratio: float, loss: float) -> dict:
    return {"kind": kind, "gflops_ratio": ratio, "difference": loss}


def test_the_fronts_of_all_methods_go_to_the_test():
    rows = [swept("dense", 1.0, 0.0), swept("released", 1.5, 0.5), swept("released", 1.4, 0.6)]
    rows += [swept("early", 1.5, 0.2), swept("delta, normalized", 2.0, 0.4), swept("normalized", 2.0, 0.1)]
    rows += [swept("lower resolution", 0.9, 0.1), swept("grid pooling", 9.0, 5.0)]
    # Not what costs more than dense, is far beyond the claim, or only shows one change.
    assert choose(rows) == [0, 1, 3, 4]


def test_both_of_our_kinds_are_one_curve():
    rows = [{"kind": kind, "cheapness": {"speed": speed}, "validation": {"difference": loss}} for kind, speed, loss in
            (("dense", 1.0, 0.0), ("early", 1.5, 0.2), ("delta, normalized", 2.0, 0.4))]  # fmt: skip
    made = curves_of(rows, column(0.0, 0.3, 0.5), "speed")
    assert list(made) == ["ours"]
    assert made["ours"].cheapness == (1.0, 1.5, 2.0)


def test_task_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"folder with a config\.json"):
        task_of(tmp_path)
    for name, task in (
        ("DPTForDepthEstimation", "depth"),
        ("TokAccelSegmenterForSemanticSegmentation", "segmentation"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        assert task_of(tmp_path) == task
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ValueError, match="ViTForImageClassification"):
        task_of(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "1"], "--limit 1 must be at least 2"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--only", "depth", "--model", "somewhere"], "leave it out beside --model"),
        (["--model", "nowhere"], "'nowhere' is not valid"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    assert command.main(["--cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", measure.TASKS)
def test_a_run_from_sweep_to_page(task, tmp_path):
    options = ["--cpu", "--quick", "--only", task, "--validation", "4", "--limit", "8", "--rounds", "1"]
    assert command.main([*options, "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("quality-cpu-*.json")
    part = json.loads(path.read_text())["models"][task]
    kinds = {row["kind"] for row in part["rows"]}
    assert {"dense", "released", "lower resolution", "grid pooling"} < kinds
    assert kinds & {"adaptive", "early", "delta, normalized"}
    assert part["rows"][0]["loss"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert ("token merging" in kinds) == (task != "panoptic")
    assert any("windows" in note for note in part["notes"]) == (task == "panoptic")
    costs = ["speed", "backbone speed", "GFLOPs", "backbone GFLOPs"] if task == "panoptic" else ["speed", "GFLOPs"]
    axes = [*costs, "difference"]
    assert list(part["claims"]) == axes
    text = (tmp_path / "quality.md").read_text()
    for picture in (tmp_path / "quality").iterdir():
        assert f"(quality/{picture.name})" in text
    assert text.count("### ") == len(axes) + 2
    assert page.short_table({task: part}).startswith("| model, metric |")
    # What is there of other models stays; the page is made anew from the file alone.
    command.add_result(path, "another", part)
    assert command.main(["tables", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "quality.md").read_text().count(f"## {task}:") == 1
