"""`hf_tokaccel convert stvit` on checkpoints as STViT-R and its detectors write them."""

import json
import sys
import types

import pytest
import torch
from PIL import Image
from skimage import data
from stvit_goldens import classifier_images, detector_images, golden
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from typer.testing import CliRunner

from hf_tokaccel.cli import app
from hf_tokaccel.convert.base import ConversionError, read_checkpoint
from hf_tokaccel.models.stvit_swin import TokAccelSTViTSwinBackbone, TokAccelSTViTSwinForImageClassification

TOLERANCE = 2e-5
BLOCK = "layers.2.blocks.1"


def state_of(values):
    return {name.removeprefix("state."): value for name, value in values.items() if name.startswith("state.")}


def classifier(flags="released"):
    """With the buffers that the original stores too."""
    state = state_of(golden(f"stvit_r_swin_cls_d6_{flags}"))
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["patch_embed.proj.0.bn.num_batches_tracked"] = torch.tensor(7)
    return state


def detector():
    state = {f"backbone.{name}": value for name, value in state_of(golden("stvit_r_det_backbone_d6")).items()}
    return {**state, "neck.lateral_convs.0.conv.weight": torch.zeros(2), "rpn_head.rpn_cls.bias": torch.zeros(3)}


def run(folder, *options):
    return CliRunner().invoke(app, ["convert", "stvit", str(folder / "ckpt.pth"), str(folder / "out"), *options])


def convert(folder, content, *options):
    torch.save(content, folder / "ckpt.pth")
    result = run(folder, *options)
    assert result.exit_code == 0, result.output
    return folder / "out", result.output


def refused(folder, content, *options):
    torch.save(content, folder / "ckpt.pth")
    result = run(folder, *options)
    assert result.exit_code == 2, result.output
    assert not (folder / "out").exists()
    return result.output


@pytest.mark.parametrize(("flags", "options"), [("released", []), ("shortcut_global", ["--shortcut"])])
def test_classifier(tmp_path, flags, options):
    folder, said = convert(tmp_path, {"model": classifier(flags), "epoch": 299}, *options)
    assert "depths [2, 2, 6, 2], from 8 channels, 10 classes" in said
    assert f"trained {'with' if options else 'without'} the flag 'shortcut'" in said
    model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert type(model) is TokAccelSTViTSwinForImageClassification
    assert not info["missing_keys"]
    accel = json.loads((folder / "config.json").read_text())["accel"]
    expected = {"formulation": "classification", "stem": "conv", "token_grid": [3, 3], "conv_position": False}
    expected |= {"generation_shortcut": bool(options), "global_centers": bool(options), "recover": True}
    assert {name: accel[name] for name in expected} == expected
    values = golden(f"stvit_r_swin_cls_d6_{flags}")
    with torch.no_grad():
        logits = model.eval()(classifier_images()).logits
    assert (logits - values["out.logits"]).abs().max() <= TOLERANCE
    assert model.swin.embeddings.patch_embeddings.projection[1].num_batches_tracked == 7


class CfgNode(dict):
    """The original's settings: a dict with attributes, of a package that need not be there."""


def test_settings_of_the_training_are_passed_over(tmp_path, monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = CfgNode(MODEL=CfgNode(NAME="stvit"))
    settings.immutable = True
    torch.save({"model": classifier(), "config": settings}, tmp_path / "ckpt.pth")
    monkeypatch.undo()
    assert run(tmp_path).exit_code == 0
    with pytest.raises(ConversionError, match=r"holds more than tensors \(yacs.config.CfgNode\)"):
        read_checkpoint(tmp_path / "ckpt.pth")


def test_classifier_runs_in_a_pipeline(tmp_path):
    folder, _ = convert(tmp_path, {"model": classifier()})
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.size["height"], processor.resample) == (224, 3)
    image = Image.fromarray(data.astronaut())
    pixels = processor(image, return_tensors="pt").pixel_values
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    resized = torch.tensor(data.astronaut()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(resized, (224, 224), mode="bicubic", antialias=True)[0] / 255
    assert (pixels[0] - (resized - mean) / deviation).abs().mean() < 0.01
    result = pipeline("image-classification", model=str(folder))(image)
    assert len(result) == 5


def test_detector(tmp_path):
    folder, said = convert(tmp_path, {"meta": {}, "state_dict": detector()})
    assert "a Backbone" in said
    assert "left out 2 parameters of the detector: neck.lateral_convs.0.conv.weight, rpn_head.rpn_cls.bias" in said
    model = TokAccelSTViTSwinBackbone.from_pretrained(folder).eval()
    assert model.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert model.config.accel["pad_mask"] == "released"
    values, inputs = golden("stvit_r_det_backbone_d6"), detector_images()
    with torch.no_grad():
        maps = model(inputs["img_h160_w200"]).feature_maps
    for level, states in enumerate(maps):
        assert (states - values[f"feat.img_h160_w200.pad_mask_true.{level}"]).abs().max() <= TOLERANCE
    # Detectors resize as their own recipe wants.
    pixels = AutoImageProcessor.from_pretrained(folder)(data.astronaut(), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 512, 512)


def test_every_option_is_read_from_the_weights(tmp_path):
    """Two units, smaller windows, another MLP, with biases and convolutions, which were never released."""
    torch.manual_seed(0)
    ours = {
        "method": "semantic_tokens",
        "recover": True,
        "formulation": "classification",
        "stem": "conv",
        "relative_position_bias": True,
        "conv_position": True,
        "global_centers": True,
    }
    sizes = {"embed_dim": 8, "depths": [1, 1, 12, 1], "num_heads": [1, 2, 2, 4], "window_size": 5, "mlp_ratio": 2.0}
    config = TokAccelSTViTSwinForImageClassification.config_class(**sizes, image_size=160, num_labels=3, accel=ours)
    model = TokAccelSTViTSwinForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder, _ = convert(tmp_path, {"model": original_names(model.state_dict())}, "--shortcut")
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert loaded.config.accel == model.config.accel
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images).logits, model(images).logits)


ORIGINAL = {
    "swin.embeddings.patch_embeddings.projection.0": "patch_embed.proj.0.c",
    "swin.embeddings.patch_embeddings.projection.1": "patch_embed.proj.0.bn",
    "swin.embeddings.patch_embeddings.projection.3": "patch_embed.proj.2.c",
    "swin.embeddings.patch_embeddings.projection.4": "patch_embed.proj.2.bn",
    "swin.encoder.layers.2.global_centers.weight": "layers.2.semantic_token2",
    "swin.encoder.layers.2.conv_position.0": "layers.2.blocks.1.conv_pos.proj.0",
    "swin.encoder.layers.2.conv_position.1": "layers.2.blocks.7.conv_pos.proj.0",
    "swin.encoder.": "",
    "swin.layernorm": "norm",
    "classifier": "head",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.relative_position_bias.relative": "attn.relative",
    "attention.o_proj": "attn.proj",
}


def original_names(state):
    """Parameters of a classifier of ours as the original names and joins them."""
    original = {}
    for name, value in state.items():
        for ours, theirs in ORIGINAL.items():
            name = name.replace(ours, theirs)
        original[name] = value
    for name in [name for name in original if ".q_proj." in name]:
        place, kind = name.split(".attention.q_proj.")
        q, k, v = (original.pop(f"{place}.attention.{part}_proj.{kind}") for part in "qkv")
        if place.startswith("layers.2.") and int(place.rpartition(".")[2]) % 6:
            original |= {f"{place}.attn.q.{kind}": q, f"{place}.attn.kv.{kind}": torch.cat((k, v))}
        else:
            original[f"{place}.attn.qkv.{kind}"] = torch.cat((q, k, v))
    return original


# bad input


def without(name):
    return {key: value for key, value in classifier().items() if not key.startswith(name)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"blocks.0.norm1.weight": torch.zeros(3)}, "not a checkpoint of STViT-R on Swin: it lacks patch_embed.proj"),
        (without("patch_embed.proj.2.c"), "it lacks patch_embed.proj.2.c.weight"),
        (without(f"{BLOCK}.attn.kv.bias"), "lacks swin.encoder.layers.2.blocks.1.attention.k_proj.bias"),
        (without("layers.3.blocks.0.attn.relative"), "lacks layers.3.blocks.0.attn.relative_position_bias_table"),
        (without("layers.2.blocks.5"), "depths [2, 2, 18, 2]"),
        (without(f"{BLOCK}."), "has units of 6 there"),
        ({**classifier(), "layers.2.blocks.3.attn.qkv.weight": torch.zeros(96, 32)}, "[0, 3] in the third"),
        ({**classifier(), "layers.2.extra": torch.zeros(1)}, "does not fit the model with layers.2.extra"),
        ({**classifier(), f"{BLOCK}.attn.q.scale": torch.zeros(1)}, "attention.q_proj.scale"),
        ({**classifier(), f"{BLOCK}.attn.kv.bias": torch.zeros(63)}, f"does not fit the model with {BLOCK}.attn.kv"),
        ({**classifier(), "norm.bias": torch.zeros(3)}, "swin.layernorm.bias ((3,) instead of (64,))"),
        ({}, "holds no parameters"),
    ],
)
def test_weights_that_are_not_those_of_stvit_r(tmp_path, state, message):
    assert message in refused(tmp_path, {"model": state})


def test_a_detector_has_no_flag(tmp_path):
    assert "leave --shortcut out" in refused(tmp_path, {"state_dict": detector()}, "--shortcut")


def test_folder_that_is_not_empty_is_left_alone(tmp_path):
    torch.save({"model": classifier()}, tmp_path / "ckpt.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert run(tmp_path, "--overwrite").exit_code == 0
