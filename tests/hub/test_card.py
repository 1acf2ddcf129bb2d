"""Model cards from the evaluations whose results are in docs/, and what is no card."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

import hf_tokaccel as ta
from hf_tokaccel.evaluation import Result
from hf_tokaccel.hub.card import build_card, pick_rows, read_result
from hf_tokaccel.reference import reference_model_path

DOCS = Path(__file__).parents[2] / "docs"
TASKS = {"depth": "AutoModelForDepthEstimation", "segmentation": "AutoModelForSemanticSegmentation"}
TASKS["panoptic"] = "AutoModelForUniversalSegmentation"


def result_of(task):
    return Result.load(DOCS / f"evaluate_{task}" / "result.json")


def config_of(task, accel):
    config = ta.accelerate_config(AutoConfig.from_pretrained(reference_model_path(task)), accel)
    config.architectures = [f"TokAccel{name}" for name in config.architectures]
    return config


@pytest.mark.parametrize("task", TASKS)
def test_every_accelerated_row_of_the_docs_makes_a_card(task):
    result = result_of(task)
    rows = [row for row in result.rows if row.kind == "clusters"]
    assert len(rows) > 1
    for row in rows:
        card = build_card(config_of(task, row.accel), "me/fast", result, base_model="you/dense")
        measured = {entry.metric_type: entry.metric_value for entry in card.data.eval_results}
        assert measured == {c.key: pytest.approx(row.metrics[c.key], abs=1e-6) for c in result.columns}
        assert card.data.base_model == "you/dense"
        assert f'{TASKS[task]}.from_pretrained("me/fast")' in card.text
        assert f"| {row.name} |" in card.text
        assert "| dense |" in card.text
        assert str(row.accel["cluster_after"]) in card.text
        others = [other.name for other in rows if other is not row]
        assert not [name for name in others if f"| {name} |" in card.text]


def test_numbers_of_another_setting_are_no_numbers_of_this_one():
    result = result_of("depth")
    accel = next(row.accel for row in result.rows if row.kind == "clusters")
    with pytest.raises(ValueError, match=r"no row of this model's setting.*clusters 18x18 after 6"):
        build_card(config_of("depth", accel | {"cluster_after": 7}), "me/fast", result)
    with pytest.raises(ValueError, match="no row of the dense model"):
        build_card(config_of("depth", accel), "me/fast", replace(result, rows=result.rows[1:]))


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_number_is_named(number):
    result = result_of("depth")
    accel = result.rows[1].accel
    result.rows[number].metrics["rmse"] = math.nan
    with pytest.raises(ValueError, match=f"no rmse in row '{result.rows[number].name}"):
        build_card(config_of("depth", accel), "me/fast", result)


def test_rivals_stand_beside_the_model():
    result = result_of("depth")
    rows = pick_rows(result, config_of("depth", result.rows[1].accel))
    assert [row.kind for row in rows[:2]] == ["dense", "clusters"]
    assert {row.kind for row in rows[2:]} == {"grid pooling", "lower resolution"}
    assert {row.group for row in rows[1:]} == {1}


def test_without_results_the_card_says_so():
    accel = result_of("depth").rows[1].accel
    card = build_card(config_of("depth", accel), "me/fast", None)
    assert "Not measured." in card.text
    assert card.data.eval_results is None


def test_files_that_hold_no_result(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json cannot be read"):
        read_result(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"is not the result\.json of an evaluation"):
        read_result(tmp_path / "other.json")
