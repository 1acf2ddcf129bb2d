"""`hf_tokaccel convert segmenter` on checkpoints as the original writes them: pickle, key names and variant.yml."""

import json
import os
from pathlib import Path

import fresh
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel.cli import app
from hf_tokaccel.models.segmenter import SegmenterForSemanticSegmentation

GOLDENS = Path(__file__).parents[1] / "goldens"
ORIGINAL = GOLDENS / "expedit_segmenter_rstrudel_tiny.safetensors"
EXPEDIT = GOLDENS / "expedit_segmenter_vit_8x8_4x4.safetensors"


def variant(**net):
    """As the original's training script dumps it; the sizes are those of the golden."""
    return {
        "net_kwargs": {
            "backbone": "vit_tiny_patch16_384",
            "d_model": 32,
            "decoder": {"drop_path_rate": 0.0, "dropout": 0.1, "n_cls": 7, "n_layers": 2, "name": "mask_transformer"},
            "distilled": False,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "image_size": (32, 32),
            "n_cls": 7,
            "n_heads": 2,
            "n_layers": 3,
            "normalization": "vit",
            "patch_size": 4,
            **net,
        },
        "dataset_kwargs": {"dataset": "toy", "image_size": 32, "crop_size": 32, "normalization": "vit"},
        "inference_kwargs": {"im_size": 32, "window_size": 32, "window_stride": 24},
        "amp": False,
    }


def original_state(decoder="mask_transformer"):
    golden = load_file(ORIGINAL)
    state = {name.removeprefix("model."): value for name, value in golden.items() if name.startswith("model.")}
    if decoder == "linear":
        state = {name: value for name, value in state.items() if name.startswith("encoder.")}
        for name in ("weight", "bias"):
            state[f"decoder.head.{name}"] = golden[f"linear_decoder.head.{name}"]
    return state


LINEAR = {"decoder": {"n_cls": 7, "name": "linear"}}


def write(folder, state, settings):
    extra = {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}, "n_cls": 7, "epoch": 3}
    torch.save({"model": state, **extra}, folder / "checkpoint.pth")
    (folder / "variant.yml").write_text(yaml.dump(settings))


def run(folder, *options):
    arguments = [str(folder / name) for name in ("checkpoint.pth", "variant.yml", "out")]
    return CliRunner().invoke(app, ["convert", "segmenter", *arguments, *options])


def convert(folder, state, settings):
    write(folder, state, settings)
    result = run(folder)
    assert result.exit_code == 0, result.output
    return folder / "out", result.output


def logits_of(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


def assert_near(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("parallel", [False, True])
def test_mask_transformer_agrees_with_the_original(tmp_path, parallel):
    state = original_state()
    if parallel:
        state = {f"module.{name}": value for name, value in state.items()}
    folder, said = convert(tmp_path, state, variant())
    assert "!!python/tuple" in (tmp_path / "variant.yml").read_text()
    assert "encoder.head.bias, encoder.head.weight" in said
    assert "drop_path_rate" in said
    # The golden's decoder has two heads; the original, and so what is converted, one per 64 channels.
    model = SegmenterForSemanticSegmentation.from_pretrained(folder, decoder_num_attention_heads=2)
    golden = load_file(ORIGINAL)
    assert_near(logits_of(model, golden["square/image"]), golden["square/masks_grid"])


def test_linear_decoder_agrees_with_the_original(tmp_path):
    folder, _ = convert(tmp_path, original_state("linear"), variant(**LINEAR))
    golden = load_file(ORIGINAL)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert_near(logits_of(model, golden["square/image"]), golden["square/linear_masks_grid"])


def test_names_of_the_expedit_port(tmp_path):
    golden = load_file(EXPEDIT)
    state = {name: value for name, value in golden.items() if name.startswith(("backbone.", "decode_head."))}
    folder, said = convert(tmp_path, state, variant(n_layers=4))
    assert "1e-06" in said.replace("1e-6", "1e-06")
    model = SegmenterForSemanticSegmentation.from_pretrained(folder, decoder_num_attention_heads=2)
    assert model.config.layer_norm_eps == 1e-6
    assert_near(logits_of(model, golden["image"]), golden["baseline/logits"])


def distilled(state):
    state["encoder.dist_token"] = torch.randn(1, 1, 32)
    positions = state["encoder.pos_embed"]
    state["encoder.pos_embed"] = torch.cat((positions[:, :1], torch.randn(1, 1, 32), positions[:, 1:]), dim=1)
    state["encoder.head_dist.weight"] = torch.zeros(10, 32)
    return state


def test_distilled_backbone_with_its_own_normalisation(tmp_path):
    state = distilled(original_state())
    folder, said = convert(tmp_path, state, variant(distilled=True, normalization="deit"))
    assert "encoder.head_dist.weight" in said
    embeddings = SegmenterForSemanticSegmentation.from_pretrained(folder).segmenter.embeddings
    assert torch.equal(embeddings.distillation_token, state["encoder.dist_token"])
    assert torch.equal(embeddings.position_embeddings, state["encoder.pos_embed"])
    assert AutoImageProcessor.from_pretrained(folder).image_mean == (0.485, 0.456, 0.406)


def test_position_embeddings_of_an_oblong_crop(tmp_path):
    state = original_state("linear")
    state["encoder.pos_embed"] = torch.randn(1, 1 + 4 * 10, 32)
    folder, _ = convert(tmp_path, state, variant(**LINEAR, image_size=[16, 40]))
    model = SegmenterForSemanticSegmentation.from_pretrained(folder)
    assert logits_of(model, torch.randn(1, 3, 16, 40)).shape == (1, 7, 4, 10)


@pytest.mark.parametrize(
    ("dataset", "count", "first", "last", "reduce"),
    [
        ("ade20k", 150, "wall", "flag", True),
        ("cityscapes", 19, "road", "bicycle", False),
        ("pascal_context", 60, "background", "wood", False),
        ("ade20k", 7, "LABEL_0", "LABEL_6", True),
    ],
)
def test_data_set_gives_names_and_labels_and_window(tmp_path, dataset, count, first, last, reduce):
    state = original_state("linear")
    state["decoder.head.weight"], state["decoder.head.bias"] = torch.randn(count, 32), torch.randn(count)
    settings = variant(**LINEAR, n_cls=count)
    settings["dataset_kwargs"]["dataset"] = dataset
    folder, said = convert(tmp_path, state, settings)
    config = AutoConfig.from_pretrained(folder)
    assert (config.id2label[0], config.id2label[count - 1]) == (first, last)
    assert config.label2id[last] == count - 1
    assert len(config.id2label) == len(config.label2id) == count
    assert (config.inference_window_size, config.inference_window_stride) == (32, 24)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.do_reduce_labels is reduce
    assert processor.image_mean == processor.image_std == (0.5, 0.5, 0.5)
    assert ("no class names" in said) is (first == "LABEL_0")


FRESH_PROCESS = """
import sys, torch
from transformers import AutoModelForSemanticSegmentation
assert "hf_tokaccel" not in sys.modules
for folder, name in zip(sys.argv[1:], ("Segmenter", "TokAccelSegmenter")):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__name__ == name + "ForSemanticSegmentation"
    with torch.no_grad():
        torch.save(model(torch.load(folder + "/images.pt")).logits, folder + "/logits.pt")
"""


def test_from_original_keys_to_a_photograph(tmp_path, monkeypatch):
    state = original_state()
    state["encoder.patch_embed.proj.weight"] *= 20  # random weights take all of a photograph for one class
    folder, _ = convert(tmp_path, state, variant())
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    fast = ta.accelerate(model, {"cluster_after": 1, "cluster_grid": 5})
    saved = tmp_path / "fast"
    fast.save_pretrained(saved)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(saved)
    images = torch.randn(2, 3, 32, 32)
    for path in (folder, saved):
        torch.save(images, path / "images.pt")
    done = fresh.run(["-c", FRESH_PROCESS, folder, saved])
    assert done.returncode == 0, done.stderr[-3000:]
    for path, same in ((folder, model), (saved, fast)):
        assert_near(torch.load(path / "logits.pt"), logits_of(same, images))

    photograph = data.astronaut()[:400]
    complaints = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", complaints.append)
    segments = pipeline("image-segmentation", str(saved))(Image.fromarray(photograph))
    assert not complaints
    assert len(segments) > 1
    assert all(segment["mask"].size == (512, 400) for segment in segments)
    processor = AutoImageProcessor.from_pretrained(saved)
    outputs = fast(processor(photograph, return_tensors="pt").pixel_values)
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(400, 512)])
    assert {segment["label"] for segment in segments} == {f"LABEL_{index}" for index in labels.unique().tolist()}


# Bad input


def refused(folder, *options):
    """What the user reads; the command must not have written anything."""
    result = run(folder, *options)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.output.startswith("error: ")
    assert not (folder / "out" / "config.json").exists()
    return result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 64}, "d_model is 64, in the checkpoint 32"),
        ({"n_layers": 12}, "n_layers is 12, in the checkpoint 3"),
        ({"patch_size": 8}, "patch_size is 8, in the checkpoint 4"),
        ({"n_cls": 150}, "n_cls is 150, in the checkpoint 7"),
        ({"distilled": True}, "distilled is True, in the checkpoint False"),
        ({"image_size": (48, 32)}, "image_size [48, 32], so the number of patches is 96, in the checkpoint 64"),
        (LINEAR, "decoder.name is linear, in the checkpoint mask_transformer"),
        ({"decoder": {"name": "mask_transformer", "n_layers": 1}}, "decoder.n_layers is 1, in the checkpoint 2"),
        ({"n_heads": 5}, "num_attention_heads=5"),
        ({"n_heads": None}, "net_kwargs.n_heads None is not valid: it must be a number above 0"),
        (
            {"decoder": {"name": "deeplab_dec"}},
            "net_kwargs.decoder.name 'deeplab_dec' is not valid: it must be one of",
        ),
        ({"decoder": {}}, "net_kwargs.decoder.name is missing: it must be one of mask_transformer, linear"),
        (
            {"image_size": [30, 30]},
            "net_kwargs.image_size [30, 30] is not valid: it must be multiples of patch_size=4",
        ),
        ({"image_size": "32"}, "net_kwargs.image_size '32' is not valid"),
        ({"normalization": "clip"}, "net_kwargs.normalization 'clip' is not valid: it must be one of vit, deit"),
        ({"dropout": 2}, "net_kwargs.dropout 2 is not valid"),
    ],
)
def test_variant_that_does_not_match_the_weights(tmp_path, change, message):
    write(tmp_path, original_state(), variant(**change))
    assert message in refused(tmp_path)


def without(name):
    state = original_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"blocks.0.norm1.weight": torch.zeros(3)}, "is not a checkpoint of Segmenter: it lacks encoder.cls_token"),
        ({k: v for k, v in original_state().items() if k.startswith("encoder.")}, "it lacks decoder.*"),
        (without("encoder.blocks.1.norm1.weight"), "lacks segmenter.layers.1.layernorm_before.weight"),
        (without("decoder.mask_norm.bias"), "lacks decode_head.mask_layernorm.bias"),
        ({**original_state(), "decoder.extra": torch.zeros(1)}, "does not fit the model with decoder.extra"),
        (
            {**original_state(), "encoder.blocks.2.attn.qkv.weight": torch.zeros(95, 32)},
            "does not fit the model with segmenter.layers.2.attn.qkv.weight",
        ),
        (
            {**original_state(), "encoder.blocks.0.mlp.fc1.bias": torch.zeros(64)},
            "segmenter.layers.0.mlp.fc1.bias ((64,) instead of (128,))",
        ),
        ({}, "holds no parameters"),
        ({"encoder.cls_token": "weights"}, "holds no parameters"),
    ],
    ids=["another model", "encoder only", "block", "decoder", "more", "fused", "shape", "empty", "no tensor"],
)
def test_weights_that_are_not_those_of_segmenter(tmp_path, state, message):
    write(tmp_path, state, variant())
    assert message in refused(tmp_path)


class Payload:
    """What a malicious pickle would run."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_files_that_are_no_checkpoints_or_variants(tmp_path):
    write(tmp_path, original_state(), variant())
    checkpoint, settings = tmp_path / "checkpoint.pth", tmp_path / "variant.yml"
    good, yml = checkpoint.read_bytes(), settings.read_text()

    torch.save({"model": original_state(), "args": Payload(tmp_path / "executed")}, checkpoint)
    assert "holds more than tensors (posix.mkdir)" in refused(tmp_path)
    assert not (tmp_path / "executed").exists()
    for content in (b"", b"not a checkpoint", good[: len(good) // 2]):
        checkpoint.write_bytes(content)
        assert "checkpoint.pth is not a PyTorch checkpoint" in refused(tmp_path)
    checkpoint.unlink()
    assert "checkpoint.pth: No such file or directory" in refused(tmp_path)

    checkpoint.write_bytes(good)
    for content, message in (
        ("a: [1", "is not valid YAML"),
        (yml + "evil: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("model: vit", "is not a variant.yml of Segmenter"),
        ("", "is not a variant.yml of Segmenter"),
    ):
        settings.write_text(content)
        assert message in refused(tmp_path)


def test_window_that_leaves_pixels_out(tmp_path):
    settings = variant()
    settings["inference_kwargs"] = {"window_size": 32, "window_stride": 48}
    write(tmp_path, original_state(), settings)
    assert "inference_kwargs.window_stride 48 is not valid: it must be at most window_size=32" in refused(tmp_path)


def test_variant_without_window_says_so(tmp_path):
    settings = variant()
    del settings["inference_kwargs"]
    folder, said = convert(tmp_path, original_state(), settings)
    assert "sliding window are unknown" in said
    assert json.loads((folder / "config.json").read_text())["inference_window_size"] is None


def test_folder_that_is_not_empty_is_left_alone(tmp_path):
    write(tmp_path, original_state(), variant())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "out is not empty: give another folder, or --overwrite" in refused(tmp_path)
    assert run(tmp_path, "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
