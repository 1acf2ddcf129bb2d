"""The UperNet training example, by way of the benchmark made of it: both backbones are trained and compared alike."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import fresh
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from benchmarks import semantic_dense
from hf_tokaccel.scenes import CLASS_NAMES

TINY = ["--image-size", "64", "--width", "8", "--head-width", "8", "--features", "8", "--warmup", "1"]
TINY += ["--stages", "32:2:1,64:2:2", "--log-every", "1", "--val-scenes", "2"]
MODEL_TYPES = {"swin": "swin", "stvit_r": "tokaccel_stvit_swin"}


def start(command, cwd, check):
    """The benchmark's processes, without another import of torch."""
    done = fresh.run(command[1:], cwd=cwd)
    print(done.stdout, done.stderr)
    return done


def run(folder: Path, *more: str) -> None:
    own = ["--output", str(folder), "--seeds", "1", "--scenes", "2", "--batches", "1", "--rounds", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic_dense, "subprocess", SimpleNamespace(run=start))
        patch.setattr(sys, "argv", ["semantic_dense.py", *own, *TINY, *more])
        semantic_dense.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    run(folder)
    return folder


def test_both_backbones_see_the_same_scenes_and_are_compared(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["runs"].keys() == MODEL_TYPES.keys()
    assert all(run["images"] == 6 and 0 <= run["miou"] <= 1 for runs in result["runs"].values() for run in runs)
    # The same head on both: what is saved is saved in the backbone.
    saved = [result["cost"][part]["gflops"] for part in ("backbone", "model")]
    assert saved[0]["swin"] - saved[0]["stvit_r"] == pytest.approx(saved[1]["swin"] - saved[1]["stvit_r"])
    assert saved[0]["stvit_r"] < saved[0]["swin"] < saved[1]["swin"]
    text = semantic_dense.table(result)
    assert "| STViT-R-Swin |" in text
    assert [line.count("|") for line in text.splitlines()] == [8] * 4  # 7 columns


def test_finished_runs_are_used_again_and_other_options_refused(folder, capfd):
    run(folder)
    assert "train_upernet.py" not in capfd.readouterr().out
    with pytest.raises(SystemExit, match=r"swin-0 holds another run: .* --output .*-2\."):
        run(folder, "--lr", "0.001")


@pytest.mark.parametrize("backbone", MODEL_TYPES)
def test_trained_folder_loads(folder, backbone):
    stored = load_file(folder / f"{backbone}-0" / "model" / "model.safetensors")
    steps = {name: value for name, value in stored.items() if name.endswith("num_batches_tracked")}
    assert {value.item() for value in steps.values()} == {3}
    assert {value.dtype for name, value in stored.items() if name not in steps} == {torch.float16}
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / f"{backbone}-0" / "model").eval()
    processor = AutoImageProcessor.from_pretrained(folder / f"{backbone}-0" / "model")
    assert model.dtype == torch.float32
    assert model.config.backbone_config.model_type == MODEL_TYPES[backbone]
    assert [model.config.id2label[i] for i in range(19)] == list(CLASS_NAMES)
    pixels = processor(torch.zeros(3, 60, 80, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert model(pixel_values=pixels).logits.shape == (1, 19, 64, 64)
