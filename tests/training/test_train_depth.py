"""The training example: a stopped and resumed run ends with the weights of an uninterrupted one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

ROOT = Path(__file__).parents[2]
TINY = ["--stages", "32:2:1,64:2:2", "--image-size", "64", "--width", "32", "--heads", "2", "--mlp", "32"]
TINY += ["--layers", "4", "--warmup", "1", "--save-every", "2", "--log-every", "1", "--val-scenes", "2", "--cpu"]


def launch(*arguments: str, through: tuple[str, ...] = ()) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *through, str(ROOT / "examples" / "train_depth.py"), *TINY, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted_training(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    accelerate = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    launch("--work", str(tmp_path / "a"), "--output", str(whole), through=accelerate)
    launch("--work", str(tmp_path / "b"), "--output", str(parts), "--stop-at", "2")
    assert not parts.exists()
    launch("--work", str(tmp_path / "b"), "--output", str(parts), "--resume")

    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) and first[k].dtype == torch.float16 for k in first)
    exact = [load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in "ab"]
    assert all(torch.equal(exact[0][k], exact[1][k]) for k in exact[0])

    logs = [[json.loads(i) for i in (f / "training_log.jsonl").read_text().splitlines()] for f in (whole, parts)]
    losses = [[(row["step"], row["images"], row["loss"]) for row in log if "loss" in row] for log in logs]
    assert losses[0] == losses[1]
    assert [row[0] for row in losses[0]] == [1, 2, 3]

    model, processor = AutoModelForDepthEstimation.from_pretrained(parts), AutoImageProcessor.from_pretrained(parts)
    assert model.dtype == torch.float32
    pixels = processor(torch.zeros(3, 60, 80, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert model(pixel_values=pixels).predicted_depth.shape == (1, 64, 64)
