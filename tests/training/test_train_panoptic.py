"""The panoptic training example: resuming is exact, the scores are right, and the reference model is what it says."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

import hf_tokaccel as ta
from hf_tokaccel.reference import reference_model_path
from hf_tokaccel.scenes import CLASS_NAMES, render_scenes

ROOT = Path(__file__).parents[2]
TINY = ["--stages", "32:2:1,64:2:2", "--image-size", "64", "--width", "8", "--head-width", "8", "--features", "32"]
TINY += ["--decoder-width", "16", "--layers", "1", "--heads", "2", "--mlp", "16", "--queries", "30", "--points", "16"]
TINY += ["--warmup", "1", "--save-every", "2", "--log-every", "1", "--val-scenes", "2", "--cpu"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_panoptic", ROOT / "examples" / "train_panoptic.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(*arguments: str) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "examples" / "train_panoptic.py"), *TINY, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted_training(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for work, output, *more in (("a", whole), ("b", parts, "--stop-at", "2"), ("b", parts, "--resume")):
        launch("--work", str(tmp_path / work), "--output", str(output), *more)

    exact = [load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in "ab"]
    assert exact[0].keys() == exact[1].keys()
    assert all(torch.equal(exact[0][k], exact[1][k]) for k in exact[0])
    logs = [[json.loads(i) for i in (f / "training_log.jsonl").read_text().splitlines()] for f in (whole, parts)]
    losses = [[(row["step"], row["images"], row["loss"]) for row in log if "loss" in row] for log in logs]
    assert losses[0] == losses[1]
    assert [row[:2] for row in losses[0]] == [(1, 2), (2, 4), (3, 6)]

    model = AutoModelForUniversalSegmentation.from_pretrained(parts)
    processor = AutoImageProcessor.from_pretrained(parts)
    assert {v.dtype for v in load_file(parts / "model.safetensors").values()} == {torch.float16}
    assert [model.config.id2label[i] for i in range(19)] == list(CLASS_NAMES)
    pixels = processor(torch.zeros(3, 60, 80, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    assert outputs.masks_queries_logits.shape == (1, 30, 16, 16)
    assert "auxiliary_logits" not in outputs


def test_fewer_queries_than_classes_are_refused(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_panoptic.py", "--queries", "18"])
    with pytest.raises(SystemExit, match=r"--queries 18: the 19 classes need one each; e.g. --queries 40\."):
        script.main()


def test_segments_part_the_image_and_only_things_have_instances(script):
    labels = torch.tensor([[[0, 0, 8, 8], [2, 0, 8, 8]], [[2, 2, 2, 2], [2, 2, 2, 16]]])
    instances = torch.tensor([[[0, 5, 1, 2], [0, 0, 1, 2]], [[0, 3, 0, 0], [0, 0, 0, 4]]])
    masks, classes = script.segments({"labels": labels, "instances": instances})
    assert [c.tolist() for c in classes] == [[0, 2, 8, 8], [2, 16]]
    assert [m.sum((1, 2)).tolist() for m in masks] == [[3, 1, 2, 2], [7, 1]]
    assert all(torch.equal(m.sum(0), torch.ones(2, 4)) for m in masks)


def test_scores_of_known_predictions(script):
    class Perfect(torch.nn.Module):
        """Knows the segments; says wall where told to confuse floor with it."""

        def __init__(self, confuse: bool):
            super().__init__()
            self.device_of, self.confuse = torch.nn.Parameter(torch.zeros(1)), confuse

        def forward(self, pixel_values):
            batch = render_scenes(range(3), (48, 48), "test", 1, materials="typical")
            masks, classes = script.segments({"labels": batch.labels, "instances": batch.instances})
            queries = max(map(len, masks))
            logits, scores = torch.full((3, queries, 48, 48), -9.0), torch.zeros(3, queries, 20)
            scores[..., 19] = 9.0
            for i, (mask, kind) in enumerate(zip(masks, classes, strict=True)):
                logits[i, : len(mask)] = 18 * mask - 9
                kind = torch.where((kind == 0) & self.confuse, 2, kind)
                scores[i, range(len(mask)), kind] = 18.0
            return argparse.Namespace(masks_queries_logits=logits, class_queries_logits=scores)

    scores = script.evaluate(Perfect(False), "test", 1, 3, 48)
    # The native processor enlarges masks to 384 pixels and rounds the edges of the smallest ones a little.
    assert scores["pq"] > 0.9
    assert scores["pq_of"]["floor"] == scores["pq_of"]["wall"] == 1.0
    confused = script.evaluate(Perfect(True), "test", 1, 3, 48)
    assert confused["pq_of"]["floor"] == 0.0
    assert confused["pq_stuff"] < scores["pq_stuff"]
    assert confused["pq_things"] == scores["pq_things"]


def outputs_of(script, batch: dict, shift: int):
    """Return confident outputs of two layers with the classes moved by `shift`."""
    masks, classes = script.segments(batch)
    logits, scores = torch.full((2, 40, 32, 32), -9.0), torch.zeros(2, 40, 20)
    scores[..., 19] = 9.0
    for i, (mask, kind) in enumerate(zip(masks, classes, strict=True)):
        logits[i, : len(mask)] = 18 * mask - 9
        scores[i, range(len(mask)), (kind + shift) % 19] = 18.0
    first = 18 * torch.nn.functional.one_hot((batch["labels"] + shift) % 19, 40).permute(0, 3, 1, 2).float() - 9
    inner = [{"masks_queries_logits": m, "class_queries_logits": scores} for m in (first, logits)]
    whole = {"masks_queries_logits": logits, "class_queries_logits": scores}

    class Output(dict):
        auxiliary_logits = inner

    return Output(whole)


def test_loss_prefers_the_truth_and_depends_on_the_batch_alone(script):
    scenes = render_scenes(range(2), (32, 32), "train", 0, materials="typical")
    batch = {"labels": scenes.labels, "instances": scenes.instances}
    args = argparse.Namespace(image_size=64, width=8, head_width=8, features=32, decoder_width=16, layers=2, heads=2)
    args.__dict__.update(third_stage=6, window=6)
    args.__dict__.update(encoder_layers=1, mlp=16, queries=40, points=256, no_object=0.1, semantic=5.0, seed=0)
    loss = script.build_loss(args)
    good, bad = (loss(outputs_of(script, batch, shift), batch) for shift in (0, 1))
    torch.rand(7)
    assert loss(outputs_of(script, batch, 0), batch) == good
    # Points are drawn where masks are uncertain, along their edges, so that a perfect answer has some loss left.
    assert good < 5 < 50 < bad


def test_embedded_model_is_small_and_clusters_its_windows(script):
    folder = reference_model_path("panoptic")
    files = list(folder.iterdir())
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) <= 8_000_000
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    assert script.evaluate(model, "test", 1, 4, 192, processor)["pq"] > 0.5
    fast = ta.accelerate(model, {"cluster_after": 6, "cluster_grid": [4, 4]})
    with ta.observe_clusters() as seen:
        assert script.evaluate(fast, "test", 1, 4, 192, processor)["pq"] > 0.5
    assert [(s.grid, s.cluster_grid) for s in seen] == [((6, 6), (4, 4))]
