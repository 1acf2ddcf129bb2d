"""The segmentation training example: resuming is exact, and the encoder can start from the depth model."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import launch, load_script
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import hf_tokaccel  # noqa: F401  registers Segmenter
from hf_tokaccel.reference import reference_model_path
from hf_tokaccel.scenes import CLASS_NAMES, render_scenes
from hf_tokaccel.training.segmentation import adjust_logits, class_weights, evaluate, segmentation_loss

SCRIPT = Path(__file__).parents[2] / "examples" / "train_segmentation.py"
TINY = ["--stages", "32:2:1,64:2:2", "--image-size", "64", "--width", "32", "--heads", "2", "--mlp", "32"]
TINY += ["--layers", "2", "--decoder-mlp", "32", "--init", "none", "--warmup", "1", "--save-every", "2"]
TINY += ["--log-every", "1", "--val-scenes", "2", "--cpu"]


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted_training(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launch(SCRIPT, *TINY, "--work", str(tmp_path / "a"), "--output", str(whole))
    launch(SCRIPT, *TINY, "--work", str(tmp_path / "b"), "--output", str(parts), "--stop-at", "2")
    launch(SCRIPT, *TINY, "--work", str(tmp_path / "b"), "--output", str(parts), "--resume")

    # Two optimisers, AdamW and Muon, have to come back with their moments.
    exact = [load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in "ab"]
    assert exact[0].keys() == exact[1].keys()
    assert all(torch.equal(exact[0][k], exact[1][k]) for k in exact[0])
    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(first[k], second[k]) and first[k].dtype == torch.float16 for k in first)
    logs = [[json.loads(i) for i in (f / "training_log.jsonl").read_text().splitlines()] for f in (whole, parts)]
    losses = [[(row["step"], row["images"], row["loss"]) for row in log if "loss" in row] for log in logs]
    assert losses[0] == losses[1]
    assert [row[:2] for row in losses[0]] == [(1, 2), (2, 4), (3, 6)]

    model, processor = (
        AutoModelForSemanticSegmentation.from_pretrained(parts),
        AutoImageProcessor.from_pretrained(parts),
    )
    assert model.dtype == torch.float32
    assert [model.config.id2label[i] for i in range(19)] == list(CLASS_NAMES)
    pixels = processor(torch.zeros(3, 60, 80, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert model(pixel_values=pixels).logits.shape == (1, 19, 8, 8)


def reference_sizes(**changes) -> argparse.Namespace:
    sizes = {
        "width": 128,
        "layers": 12,
        "heads": 4,
        "mlp": 512,
        "image_size": 192,
        "decoder_mlp": 256,
        "patch_size": 8,
    }
    return argparse.Namespace(**{**sizes, "init": "depth", "resume": False, **changes})


def test_encoder_starts_as_the_depth_models(script):
    from transformers import AutoModelForDepthEstimation

    model = script.build_model(reference_sizes()).eval()
    depth = AutoModelForDepthEstimation.from_pretrained(reference_model_path("depth"), dtype=torch.float32)
    pixels = torch.rand(1, 3, 192, 192)
    with torch.no_grad():
        ours = model.segmenter(pixels, output_hidden_states=True).hidden_states
        theirs = depth(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours[6], theirs[6])


def test_encoder_of_another_size_is_refused(script):
    with pytest.raises(SystemExit, match=r"another size or form .*--width and --layers, or --init none"):
        script.build_model(reference_sizes(layers=6))


def test_scores_of_known_predictions():
    class Perfect(torch.nn.Module):
        """Knows the labels; says wall where told to confuse floor with it."""

        def __init__(self, confuse: bool):
            super().__init__()
            self.device_of, self.confuse = torch.nn.Parameter(torch.zeros(1)), confuse

        def forward(self, pixel_values):
            truth = render_scenes(range(4), (48, 48), "test", 1, materials="typical").labels
            if self.confuse:
                truth = torch.where(truth == 0, 2, truth)
            logits = torch.nn.functional.one_hot(truth, 19).permute(0, 3, 1, 2).float()
            return argparse.Namespace(logits=logits)

    scores = evaluate(Perfect(False), "test", 1, 4, 48)
    assert scores["miou"] == scores["mean_accuracy"] == scores["pixel_accuracy"] == 1.0
    labels = render_scenes(range(4), (48, 48), "test", 1, materials="typical").labels
    floor, wall = (labels == 0).sum().item(), (labels == 2).sum().item()
    scores, present = evaluate(Perfect(True), "test", 1, 4, 48), len(labels.unique())
    assert scores["iou"]["floor"] == 0.0
    assert scores["iou"]["wall"] == round(wall / (wall + floor), 3)
    assert len(scores["iou"]) == present
    assert scores["miou"] == pytest.approx((present - 2 + wall / (wall + floor)) / present, abs=1e-4)
    assert scores["pixel_accuracy"] == pytest.approx(1 - floor / labels.numel(), abs=1e-4)


def test_loss_prefers_the_truth_and_weighs_classes():
    labels = render_scenes(range(2), (64, 64), "train", 0, materials="typical").labels
    good = 8.0 * torch.nn.functional.one_hot(labels, 19).permute(0, 3, 1, 2).float()
    weights = class_weights(0.5, torch.device("cpu"))
    assert segmentation_loss(good, labels, 0.5) < 0.1 < segmentation_loss(good.roll(1, 1), labels, 0.5)
    assert weights[CLASS_NAMES.index("cup")] > 5 * weights[CLASS_NAMES.index("floor")]
    torch.testing.assert_close(class_weights(0.0, torch.device("cpu")), torch.ones(19))


def test_adjustment_gives_back_a_share_of_the_log_weights(script):
    args = reference_sizes(width=32, layers=1, heads=2, mlp=32, decoder_mlp=32, image_size=64, init="none")
    args.balance, args.adjustment = 0.5, 0.25
    model = script.build_model(args).eval()
    with torch.no_grad():
        pixels = torch.rand(1, 3, 64, 64)
        before = model(pixels).logits
        adjust_logits(model.decode_head.mask_layernorm.bias, args)
        given = (before - model(pixels).logits).mean(dim=(0, 2, 3))
    torch.testing.assert_close(given, 0.25 * class_weights(0.5, torch.device("cpu")).log())


def test_embedded_model_is_small():
    files = list(reference_model_path("segmentation").iterdir())
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) <= 6_000_000
