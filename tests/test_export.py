"""Export to ONNX and torch.export by one command, checked against eager by the command itself."""

import json

import pytest
import torch
from family import TINY_DINOV2
from transformers import Dinov2Config, Dinov2Model
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel import export
from hf_tokaccel.cli import app
from hf_tokaccel.export import export_model

SETTING = {"cluster_after": 1, "cluster_grid": (4, 4), "window": 3, "neighbors": 4}


@pytest.fixture(scope="module")
def fast():
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**{key: value for key, value in TINY_DINOV2.items() if key != "model_type"}))
    return ta.accelerate(model.eval(), SETTING)


@pytest.fixture
def images():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_command_writes_and_checks(fast, images, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    fast.save_pretrained(tmp_path / "model")
    out = tmp_path / f"graph{export.SUFFIXES[format]}"
    arguments = ["export", str(tmp_path / "model"), "--out", str(out), "--format", format, "--size", "32"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["accel"]["cluster_grid"] == [4, 4]
    assert said["outputs"] == {"last_hidden_state": [1, 65, 32], "pooler_output": [1, 32]}
    assert 0 <= said["difference"] < 1e-4
    if format == "torch":
        with torch.no_grad():
            states = torch.export.load(out).module()(images)[0]
            torch.testing.assert_close(states, fast(images).last_hidden_state, rtol=1e-4, atol=1e-4)
    refused = CliRunner().invoke(app, [*arguments, "--overwrite", "--accel", "recommended:99"])
    assert "speedup=99.0 cannot be reached" in " ".join(refused.stderr.split())
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists: give another name, or --overwrite" in " ".join(again.stderr.split())


def test_a_wrong_file_is_refused(fast, images, tmp_path, monkeypatch):
    """What was written is what is checked: here another model's graph."""
    other = ta.accelerate(fast, {**SETTING, "cluster_grid": (2, 2)})
    write = export._write_program
    monkeypatch.setattr(export, "_write_program", lambda plain, *rest: write(export._Plain(other), *rest))
    with pytest.raises(ValueError, match=r"graph\.pt2 differs from the eager model by .* do not use it"):
        export_model(fast, images, tmp_path / "graph.pt2", "torch")


def test_formats_names_and_models_that_cannot_are_refused(fast, images, tmp_path):
    with pytest.raises(ValueError, match="for example onnx"):
        export_model(fast, images, tmp_path / "graph.onnx", "tflite")
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_model(fast, images, tmp_path / "graph.pt2")
    with pytest.raises(ValueError, match="_Branching cannot be exported to torch"):
        export_model(_Branching(ta.to_native(fast).config).eval(), images, tmp_path / "graph.pt2", "torch")


class _Branching(Dinov2Model):
    def forward(self, pixel_values, **kwargs):
        return super().forward(pixel_values if pixel_values.sum() > 0 else -pixel_values, **kwargs)
