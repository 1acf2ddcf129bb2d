"""How results are written."""

import json
import math

import pytest

from hf_tokaccel.results.files import write_json


def test_rows_have_a_line_each_and_numbers_six_digits(tmp_path):
    rows = [{"name": f"row {i}", "size": (48, 64), "value": i + 1 / 3, "sums": [0.1] * 99} for i in range(5)]
    values = {"about": {"torch": "2.15.0", "cores": 2}, "rows": rows, "text": "ä" * 200, "nothing": math.nan}
    path = tmp_path / "result.json"
    write_json(path, values)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["{", ' "about": {"torch": "2.15.0", "cores": 2},', ' "rows": [']
    assert len(lines) == 12
    assert json.loads(lines[4].rstrip(",")) == {
        "name": "row 1",
        "size": [48, 64],
        "value": 1.33333,
        "sums": [0.1] * 99,
    }
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == values.keys()
    assert found["rows"][4]["value"] == 4.33333
    assert found["text"] == values["text"]
    assert found["nothing"] is None


def test_tables_of_the_file_are_those_of_the_values(tmp_path):
    values = [
        0.71749951,
        0.71750049,
        0.9463503,
        0.9463497,
        -0.12499997,
        17.4999951,
        5e-7 / 3,
        1 - 1e-9,
        0.1 + 0.2,
        0.45,
    ]
    write_json(tmp_path / "x.json", values)
    short = json.loads((tmp_path / "x.json").read_text())
    for digits in range(1, 6):
        assert [f"{value:.{digits}g}" for value in short] == [f"{value:.{digits}g}" for value in values]
    assert short[-3:] == [1.0, 0.3, 0.45]
    write_json(tmp_path / "x.json", values, exact=True)
    assert json.loads((tmp_path / "x.json").read_text()) == values


@pytest.mark.parametrize(
    "value", [123456789, 0.1, 1e-12, -2.5e30, True, None, "x", [], {}, [[]], [1, [2.0, {"a": 3}]]]
)
def test_what_has_six_digits_comes_back_as_it_was(tmp_path, value):
    write_json(tmp_path / "x.json", {"value": value})
    assert json.loads((tmp_path / "x.json").read_text()) == {"value": value}
