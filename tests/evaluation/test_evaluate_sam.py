"""`examples/evaluate_sam.py` from end to end on tiny random models."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_main
from test_sam import TINY, awaken
from test_sam_hq import TINY_HQ
from transformers import (
    DPTConfig,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

import hf_tokaccel as ta
from hf_tokaccel.evaluation import Result, Variant
from hf_tokaccel.evaluation.sam.task import SamProtocol, SamTask, mask_iou

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_sam.py"
ACCEL = "cluster_after=1,cluster_grid=2x2,window=3,neighbors=2"
PROMPTS = {
    "0.png": {"points": [[5, 6], [30, 20]], "boxes": [[2, 3, 20, 18]]},
    "1.png": {"boxes": [[0, 0, 24, 40], [4, 4, 9, 30]]},
    "2.png": {"points": [[1.5, 2.5]]},
}


def make_model(native, config, sizes=TINY):
    torch.manual_seed(0)
    return awaken(native(config(**sizes))).eval()


def make_processor():
    side = {"height": 32, "width": 32}
    return SamImageProcessor(
        size={"longest_edge": 32}, pad_size=side, mask_size={"longest_edge": 32}, mask_pad_size=side
    )


def save(model, folder):
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save(make_model(SamModel, SamConfig), tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(32, 48), (40, 24), (20, 20)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def main():
    return load_main(SCRIPT)


@pytest.fixture
def evaluate(main, model_folder, images, tmp_path):
    """Runs the script and returns its result."""

    def run(*arguments):
        model = () if "--model" in arguments else ("--model", str(model_folder))
        options = ["--dataset", str(images), "--cpu", "--rounds", "1", "--points-per-side", "2", "--pictures", "2"]
        if "--prompts" in arguments:
            options = [o for o in options if o not in ("--points-per-side", "2")] + ["1"]
        assert main([*model, *options, "--output", str(tmp_path / "out"), *arguments]) == 0
        return Result.load(tmp_path / "out" / "result.json")

    return run


def quality(result):
    names = ("miou", "chosen_miou", "over_90")
    return np.array([[*(row.metrics[n] for n in names), *row.intervals["miou"]] for row in result.rows])


def test_table_and_picture(evaluate, tmp_path, capsys):
    result = evaluate()
    assert (result.task, result.num_images) == ("mask-generation", 3)
    # Windows of 5x5 tokens and 4 layers.
    names = [row.name for row in result.rows if row.kind == "clusters"]
    assert [name.split(",")[0] for name in names] == ["clusters 4x4 after 2"] * 3 + ["clusters 4x4 after 1"] * 3
    assert [row.kind for row in result.rows].count("grid pooling") == 4
    # SAM has one input size and windows.
    assert [note.split(" beside")[0] for note in result.notes] == 2 * [
        "No lower resolution",
        "No token merging or token merging, delta",
    ]
    numbers = quality(result)
    np.testing.assert_array_equal(numbers[0], 1)
    assert (numbers >= 0).all()
    assert (numbers[1:, :2] < 1).any()
    assert result.rows[4].gflops < result.rows[0].gflops  # pooling; finding clusters costs as much as so tiny blocks
    assert "mIoU" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "scenes.png") as picture:
        assert picture.size[0] > 1000
    # Each image by itself, but for the rounding of other batches.
    batches = evaluate("--batch-size", "3", "--pictures", "0")
    np.testing.assert_allclose(quality(batches), numbers, atol=0.02)


def test_masks_are_those_of_the_native_processor(images, model_folder):
    """Points and boxes in pixels of the image, through SamProcessor and SamModel."""
    model = SamModel.from_pretrained(model_folder).eval()
    processor = SamProcessor(make_processor())
    with Image.open(images / "0.png") as image:
        pixels = np.array(image)
    (images.parent / "prompts.json").write_text(json.dumps({"0.png": PROMPTS["0.png"]}))
    from hf_tokaccel.evaluation.sam.data import read_prompts

    prompts = read_prompts(images.parent / "prompts.json", ["0.png"])
    task = SamTask(model, make_processor(), SamProtocol(prompts=prompts))
    item = task.encode({"name": "0.png", "image": pixels})
    variant = Variant("dense", model)
    with torch.no_grad():
        (found,) = task.decode(task.run(variant, item["pixel_values"][None]), [item])
    assert found.masks.shape == (3, 3, 32, 48)
    for chosen, kind in ((slice(0, 2), "points"), (slice(2, 3), "boxes")):
        places = PROMPTS["0.png"][kind]
        given = {"input_points": [[[p] for p in places]]} if kind == "points" else {"input_boxes": [places]}
        inputs = processor(images=pixels, return_tensors="pt", **given)
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        with torch.no_grad():
            output = model(**inputs, multimask_output=kind == "points")
        (masks,) = processor.post_process_masks(output.pred_masks, *sizes)
        assert torch.equal(found.masks[chosen, : masks.shape[1]], masks)
        assert masks.float().mean() not in (0, 1)
    assert not found.masks[2, 1:].any()


def test_iou_of_masks():
    one = torch.zeros(3, 4, 4, dtype=torch.bool)
    two = one.clone()
    one[0, :2], two[0, 1:3] = True, True
    one[1] = True
    assert mask_iou(one, two).tolist() == [pytest.approx(1 / 3), 0, 1]


def test_prompts_of_a_file(evaluate, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    result = evaluate("--prompts", str(tmp_path / "prompts.json"), "--accel", ACCEL, "--pictures", "1")
    assert result.protocol["prompts"] == "points and boxes of a file"
    numbers = quality(result)
    assert 0 <= numbers[1, 0] < 1
    # 7 prompts in all.
    assert numbers[1, 2] * 6 == pytest.approx(round(numbers[1, 2] * 6))


def test_sam_hq_and_an_accelerated_folder(evaluate, tmp_path):
    model = make_model(SamHQModel, SamHQConfig, TINY_HQ)
    result = evaluate("--model", str(save(model, tmp_path / "hq")), "--accel", ACCEL)
    assert 0 < quality(result)[1, 0] < 1
    setting = ta.TokenClusteringConfig(cluster_after=1, cluster_grid=(2, 2), window=3, neighbors=2)
    stored = evaluate("--model", str(save(ta.accelerate(model, setting), tmp_path / "fast")), "--pictures", "0")
    np.testing.assert_array_equal(quality(stored)[:2], quality(result)[:2])


def test_photographs(main, model_folder, images, tmp_path, capsys):
    options = ["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), "--points-per-side", "2"]
    assert main([*options, "--accel", ACCEL, "--images", str(images / "0.png")]) == 0
    said = re.search(r"0: mean IoU (\S+) with the masks of the dense model", capsys.readouterr().out)
    assert 0 < float(said[1]) < 1
    assert (tmp_path / "out" / "photographs.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points-per-side", "0"], "--points-per-side 0 must be at least 1"),
        (["--dataset", "/no/such"], "dataset '/no/such' is no folder; use photographs"),
        (["--prompts", "/no/such.json"], "prompt file /no/such.json cannot be read"),
        (["--compile"], "--compile is not for SAM here"),
        (["--accel", "cluster_after=1,cluster_grid=6x6"], "square smaller than the 5 x 5 tokens"),
    ],
)
def test_mistakes_are_one_line_and_exit_two(main, model_folder, images, tmp_path, capsys, arguments, message):
    options = ["--model", str(model_folder), "--dataset", str(images), "--cpu", "--output", str(tmp_path / "out")]
    assert main([*options, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (PROMPTS | {"3.png": {"points": [[1, 1]]}}, "has prompts of '3.png', which is no image"),
        ({"0.png": PROMPTS["0.png"]}, "lacks prompts of '1.png'"),
        (PROMPTS | {"2.png": {"points": [[1, 2, 3]]}}, "points of '2.png' .* must be lists of 2 numbers"),
        (PROMPTS | {"2.png": {"dots": [[1, 2]]}}, "must be points, boxes or both"),
        (PROMPTS | {"2.png": {"points": []}}, "has no prompt"),
        (PROMPTS | {"2.png": {"points": [[21, 2]]}}, r"point \[21.0, 2.0\] of image 2.png must lie on its 20x20"),
        (PROMPTS | {"1.png": {"boxes": [[9, 4, 4, 30]]}}, r"box \[9.0, 4.0, 4.0, 30.0\] of image 1.png must lie"),
    ],
)
def test_wrong_prompts_are_named(main, model_folder, images, tmp_path, capsys, prompts, message):
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    options = ["--model", str(model_folder), "--dataset", str(images), "--cpu", "--output", str(tmp_path / "out")]
    assert main([*options, "--accel", "none", "--prompts", str(tmp_path / "prompts.json")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_is_no_sam(main, tmp_path, capsys):
    assert main(["--cpu", "--output", str(tmp_path / "out")]) == 2
    assert "--model is missing: no SAM comes with this package; give one, such as facebook" in capsys.readouterr().err
    DPTConfig().save_pretrained(tmp_path / "dpt")
    assert main(["--model", str(tmp_path / "dpt"), "--cpu", "--output", str(tmp_path / "out")]) == 2
    assert "which is no SAM whose vision encoder can be accelerated; types that do: sam" in capsys.readouterr().err
