"""Verdicts of the benchmark of `tune`, on made-up numbers; nothing is run."""

import pytest

from benchmarks import readme, tune


def row(group, kind, ratio, value, name="s"):
    return {"group": group, "kind": kind, "name": name, "gflops_ratio": ratio, "metrics": {"abs_rel": value}}


def result(*rows, notes=()):
    part = {"metric": "abs_rel", "more is better": False, "gflops": 2.0, "rows": list(rows), "notes": list(notes)}
    part["verdicts"] = tune.verdicts(part["rows"], "depth")
    return {"images": 4, "scenes": 8, "seed": 0, "tasks": {"depth": part}}


DENSE = row("", "dense", 1.0, 0.10, "dense")


def test_a_win_within_the_budget_only_and_a_loss_to_lower_resolution():
    found = result(
        DENSE,
        row("12x12", "hand-picked", 0.600, 0.14),
        row("12x12", "hand-picked", 0.604, 0.13),
        row("12x12", "hand-picked", 0.700, 0.11),  # dearer than the budget
        row("12x12", "tuned", 0.601, 0.12),
        row("12x12", "lower resolution", 0.59, 0.115),
    )
    (verdict,) = found["tasks"]["depth"]["verdicts"]
    wins = {name: verdict[name]["tuned wins"] for name in ("equal GFLOPs", "any GFLOPs", "lower resolution")}
    assert wins == {"equal GFLOPs": True, "any GFLOPs": False, "lower resolution": False}
    assert verdict["equal GFLOPs"]["best"] == 0.13
    (cells,) = tune.verdict_rows(found)
    expected = ["0.1000", "0.1300 (60.4 %)", "0.1200 (60.1 %)", "0.1150 (59.0 %)", "lower resolution"]
    assert cells == ["depth", "12x12", "abs_rel ↓", *expected]
    said = tune.sentences(found)
    assert said[0] == "depth: tune beats hand-picked settings of equal GFLOPs everywhere."
    assert [line for line in said if "does not beat" in line] == [
        "depth: tune does not beat hand-picked settings of any GFLOPs at 12x12.",
        "depth: tune does not beat a lower resolution at 12x12.",
    ]


def test_without_a_lower_resolution_the_cell_is_empty_and_a_note_says_why():
    found = result(
        DENSE, row("4x4", "hand-picked", 0.5, 0.2), row("4x4", "tuned", 0.5, 0.2), notes=["No lower resolution"]
    )
    (cells,) = tune.verdict_rows(found)
    assert cells[-2:] == ["", "tuned and hand-picked"]
    assert tune.sentences(found)[-1] == "depth: No lower resolution."
    table = tune.markdown(found).splitlines()
    assert {line.count("|") for line in table[:3]} == {len(tune.HEADINGS) + 1}


@pytest.mark.parametrize("there", [True, False])
def test_the_page_says_when_nothing_was_run(tmp_path, monkeypatch, there):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    if not there:
        assert "was not run" in readme.tune_table()
        return
    import json

    from benchmarks.common import stamp

    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    found = stamp([]) | result(DENSE, row("4x4", "hand-picked", 0.5, 0.2), row("4x4", "tuned", 0.5, 0.1))
    (folder / "tune-cpu-torch2.15.0.json").write_text(json.dumps(found))
    assert "`benchmarks/results/tune-cpu-torch2.15.0.json`" in readme.tune_table()
    assert "| 0.1000 (50.0 %) |" in readme.tune_table()
