"""The run on a GPU: what becomes of a step, and all of it with tiny models on the CPU."""

import json
import sys
import time

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import page, parity, targets, timing
from benchmarks.gpu.steps import Steps, read

CPU = torch.device("cpu")


@pytest.fixture
def steps(tmp_path):
    return Steps(tmp_path / "gpu-test.jsonl", time.time() + 60, CPU)


def test_a_step_that_fails_or_takes_too_long_leaves_a_line_and_the_next_one_runs(steps):
    def hang():
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # what compilers do, which must not keep a step alive
                continue

    assert steps.run("fails", lambda: 1 / 0, 1, 5) is None
    assert steps.run("hangs", hang, 1, 0.1) is None
    assert steps.run("needs more", lambda: 1, 1000, 5) is None
    assert steps.run("works", lambda: {"value": float("nan")}, 1, 5) is not None
    fails, hangs, needs, works = read(steps.path)
    assert fails["error"].startswith("ZeroDivisionError")
    assert "test_gpu.py" in fails["where"]
    assert hangs["error"] == "OutOfTime: took longer than 0.1 s"
    assert needs["skipped"].endswith("1000 are needed")
    assert works["result"] == {"value": None}


def test_a_run_that_goes_on_leaves_out_what_was_done(steps):
    steps.run("first", lambda: 1, 1, 5)
    with steps.path.open("a") as file:
        file.write('{"step": "cut o')
    again = Steps(steps.path, steps.ends, CPU)
    assert again.run("first", lambda: 2, 1, 5) is None
    assert again.run("cut off", lambda: 2, 1, 5) == 2
    assert [record["step"] for record in read(steps.path)] == ["first", "cut off"]


def test_calls_that_do_not_run_are_told_from_those_that_do():
    calls, errors = timing.usable({"good": lambda: 1, "bad": lambda: [][0]})
    assert list(calls) == ["good"]
    assert errors["bad"]["error"].startswith("IndexError")
    with pytest.raises(ValueError, match="has no CUDA graphs; use cuda"):
        timing.record_graph(lambda: 1, CPU)


def test_all_of_it_runs_with_tiny_models(tmp_path, monkeypatch):
    for name, seconds in vars(timing.EFFORT).items():
        monkeypatch.setattr(timing.EFFORT, name, seconds)  # which a quick run changes
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    command.main()
    (path,) = tmp_path.glob("gpu-quick-cpu-*.jsonl")
    records = {record["step"]: record for record in map(json.loads, path.read_text().splitlines())}
    assert {name: record for name, record in records.items() if "result" not in record} == {}
    for name, record in records.items():
        if name.startswith("parity "):
            assert all(outcome.get("holds", "not offered" in outcome) for outcome in record["result"].values()), name
    rows = records["model segmenter, batch 1"]["result"]["rows"]
    assert {"dense", "grid, careful", "smaller image"} <= {name for name, row in rows.items() if row["ms"] > 0}
    text = page.tables([path])
    for title in ("The machine", "The same as on the CPU", "Whole models", "Compiled"):
        assert f"## {title}\n" in text
    assert "What did not run" not in text


def test_the_page_is_that_of_the_results():
    assert page.tables([]) == page.NONE
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.fill_marked(text, {"gpu": page.tables(page.found())})


def test_the_newest_run_that_came_to_an_end_counts(tmp_path):
    def write(commit, *records):
        git = {"git": {"commit": commit, "dirty": False}}
        environment = {"date": commit, "machine": {"device": "cpu"}, "versions": {}}
        lines = [{"step": "environment", "result": environment | git}, *records]
        (path := tmp_path / commit).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    old = write(
        "1" * 10,
        {"step": "method a", "result": 1},
        {"step": "method b", "result": 1},
        {"step": "compiled c", "result": {"rows": {"dense": {"ms": 1}, "half": {"ms": 1}}}},
    )
    new = write(
        "2" * 10,
        {"step": "method a", "result": 2},
        {"step": "method b", "error": "broken"},
        {"step": "compiled c", "result": {"rows": {"dense": {"ms": 2}}}},
    )
    records = page.merged([old, new])
    assert records["method a"]["result"] == 2
    assert (records["method b"]["result"], records["method b"]["commit"]) == (1, "1" * 7)
    rows = records["compiled c"]["result"]["rows"]
    assert rows == {"dense": {"ms": 2, "commit": "2" * 7}, "half": {"ms": 1, "commit": "1" * 7}}
    assert page._failed([old, new]) == "- method b: broken (`2222222`)"


def test_targets_are_held_against_what_was_measured():
    def rows(**ms):
        return {"result": {"rows": {name.replace("_", ", "): {"ms": value} for name, value in ms.items()}}}

    step = "compiled segmenter-l-640, batch 8, default"
    records = {step: {"result": {"rows": {"grid, bold": {"speedup": 1.7, "commit": "a"}}}}}
    records["model vit-l-518, batch 1"] = rows(dense=10.0, adaptive_half=12.5, adaptive_careful=20.0)
    lines = targets.reached(records)
    assert [line[3] for line in lines if "compiled, batch 8" in line[0]] == ["yes"]
    (eager,) = (line for line in lines if "never slower" in line[0])
    assert eager[2:4] == ["vit-l-518 0.80x", "**no**"]


def test_a_replay_that_takes_longer_than_its_call_gives_no_speed():
    assert targets.trusted({"ms": 8.8, "graph_ms": 18.6}) is None
    assert targets.trusted({"ms": 8.8, "graph_ms": 4.0}) == 4.0


def test_a_family_that_refuses_clusters_is_no_error():
    found = parity.check_family("sam", CPU)
    forms = {name.rpartition(" ")[2]: outcome for name, outcome in found.items()}
    assert forms["dense"]["holds"]
    assert forms["grid"]["holds"]
    assert page.is_not_offered(forms["adaptive"])
    text = page._parity({"parity sam": {"result": found, "commit": ""}})
    assert "clusters=" not in text
