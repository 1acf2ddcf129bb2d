"""`examples/evaluate_segmentation.py` from end to end on a tiny random model."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import test_evaluate_panoptic as queries
import torch
from PIL import Image
from scripts import load_main, run_one_and_two
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    Mask2FormerImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
)

import hf_tokaccel as ta
from hf_tokaccel import reference
from hf_tokaccel.evaluation import Result
from hf_tokaccel.evaluation.segmentation.task import QuerySegmentationTask, SegmentationProtocol
from hf_tokaccel.models.segmenter import SegmenterConfig, SegmenterForSemanticSegmentation, segmenter_image_processor

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_segmentation.py"
ACCEL = "cluster_after=1,cluster_grid=3x3"
CLASSES = 19


def make_model(**config):
    """Segmenter whose classes vary over an image: the default initialisation would give one class everywhere."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    shape = {"image_size": 32, "patch_size": 8, "decoder_num_hidden_layers": 1, "num_labels": CLASSES}
    return SegmenterForSemanticSegmentation(SegmenterConfig(**sizes, **(shape | config), initializer_range=0.3)).eval()


def save(model, folder):
    model.save_pretrained(folder)
    segmenter_image_processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save(make_model(), tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="session")
def main():
    return load_main(SCRIPT)


@pytest.fixture
def evaluate(main, model_folder, tmp_path):
    """Runs the script, by default on the tiny model and without pictures, and returns its result."""

    def run(*arguments):
        model = () if "--model" in arguments else ("--model", str(model_folder))
        options = ["--cpu", "--rounds", "1", "--limit", "3", "--pictures", "0", "--output", str(tmp_path / "out")]
        assert main([*model, *options, *arguments]) == 0
        return Result.load(tmp_path / "out" / "result.json")

    return run


def quality(result):
    names = ("miou", "kept", "mean_accuracy", "pixel_accuracy")
    numbers = [[row.metrics[name] for name in names] for row in result.rows]
    ends = [[*row.intervals["miou"], *row.intervals.get("kept", (1, 1))] for row in result.rows]
    per_class = [[-1 if value is None else value for value in row.classes.values()] for row in result.rows]
    return np.concatenate([numbers, ends, per_class], axis=1)


def test_default_rows_on_scenes(evaluate, tmp_path, capsys):
    result = evaluate("--pictures", "1")
    clustered = [row for row in result.rows if row.kind == "clusters"]
    grids = [row for row in clustered if row.accel["cluster_grid"]]
    # Adaptive clusters stand beside the grids of each share.
    assert [row.group for row in clustered if row not in grids] == [1, 2]
    names = [row.name for row in grids]
    # 10 of 24 layers at full resolution and half of the tokens, here of 4 layers and 4x4 tokens.
    assert names[:4] == [
        "clusters 3x3 after 2, soft",
        "clusters 3x3 after 2, soft, decode_clusters=False",
        "clusters 3x3 after 2, nearest",
        "clusters 3x3 after 2, delta",
    ]
    assert [name.split(",")[0] for name in names[4:]] == ["clusters 2x2 after 1"] * 4
    accel = [row.accel for row in grids]
    assert [a["decode_clusters"] for a in accel[:4]] == [True, False, True, False]
    assert [a["normalization"] for a in accel[:4]] == ["l2", "l2", "l2", "l1"]
    kinds = [row.kind for row in result.rows]
    assert kinds.count("grid pooling") == 4
    smaller, merged = (sum(note.startswith(f"No {k}") for note in result.notes) for k in ("lower", "token merging"))
    assert kinds.count("lower resolution") + smaller == 2
    assert kinds.count("token merging") + merged == 2
    assert result.rows[0].metrics["kept"] == 1
    assert all(row.intervals["kept"][0] <= row.metrics["kept"] for row in result.rows[1:])
    assert np.isfinite(quality(result)).all()
    assert len(np.unique(quality(result)[:, 0])) > 3  # the settings do change what is predicted
    assert (result.task, result.dataset, result.num_images) == (
        "image-segmentation",
        "scenes of typical materials (test, seed 0)",
        3,
    )
    assert result.protocol["inference"] == "whole"
    assert list(result.rows[0].classes)[:2] == ["floor", "ceiling"]
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "IoU per class" in printed
    assert (tmp_path / "out" / "result.md").read_text().startswith("| model | mIoU")
    with Image.open(tmp_path / "out" / "scenes.png") as picture:
        assert picture.size[0] == pytest.approx(200 * (6 * 1.75 + 7 * 0.06), abs=2)


def save_pair(folder, number, size, classes=150, offset=1):
    """An image and its label as ADE20K stores them."""
    rng = np.random.default_rng(number)
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        (folder / kind / "validation").mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 255, (*size, 3)) if kind == "images" else rng.integers(0, classes + offset, size)
        Image.fromarray(values.astype(np.uint8)).save(folder / kind / "validation" / f"{number}.{suffix}")


@pytest.fixture(scope="session")
def ade20k(tmp_path_factory):
    """Images of several sizes, one smaller than the crop, and two files that are cut off."""
    folder = tmp_path_factory.mktemp("ade")
    for number, size in enumerate([(32, 48), (40, 72), (20, 24), (40, 72), (50, 40), (64, 32), (33, 33)]):
        save_pair(folder, number, size)
    for path in (folder / "images/validation/3.jpg", folder / "annotations/validation/5.png"):
        path.write_bytes(path.read_bytes()[:100])
    return folder


@pytest.fixture(scope="session")
def ade_model(tmp_path_factory):
    model = make_model(num_labels=150, inference_window_size=32, inference_window_stride=24)
    return save(model, tmp_path_factory.mktemp("ade-model"))


def test_two_processes_give_exactly_the_same_metrics_and_skip_the_same_files(
    main, ade20k, ade_model, tmp_path, capsys
):
    options = ["--model", str(ade_model), "--dataset", f"ade20k:{ade20k}", "--cpu", "--rounds", "1", "--accel", ACCEL]
    options += ["--batch-size", "2", "--pictures", "4"]
    assert main([*options, "--output", str(tmp_path / "bad")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"2 of 7 images cannot be used: .*images/validation/3.jpg cannot be read.*annotations/.*5.png", error
    )
    assert error.endswith("--skip-bad")
    assert not (tmp_path / "bad" / "result.json").exists()
    options += ["--skip-bad"]
    one, two, printed = run_one_and_two(main, SCRIPT, options, tmp_path)
    np.testing.assert_array_equal(quality(two), quality(one))
    assert one.protocol["windows"] == {"crop": 32, "stride": 24, "resizes": True}
    for result in (one, two):
        assert result.num_images == 5
        assert [re.search(r"\w+/\w+/\d.\w+", reason)[0] for reason in result.skipped] == [
            "images/validation/3.jpg",
            "annotations/validation/5.png",
        ]
    assert "2 images were skipped" in " ".join(capsys.readouterr().out.split())
    assert "2 images were skipped" in (tmp_path / "two" / "result.md").read_text()
    assert printed.count("mIoU") == 1  # only the first process reports


def test_one_window_is_the_whole_image(evaluate):
    whole = evaluate("--accel", ACCEL)
    sliding = evaluate("--accel", ACCEL, "--crop", "32")
    np.testing.assert_array_equal(quality(sliding), quality(whole))
    overlapping = evaluate("--accel", "cluster_after=1,cluster_grid=1x2", "--crop", "16", "--stride", "8")
    assert overlapping.protocol["windows"] == {"crop": 16, "stride": 8, "resizes": False}
    assert overlapping.rows[0].input_size == (16, 16)
    assert overlapping.rows[0].gflops > whole.rows[0].gflops  # 9 windows, each a quarter of the image


def test_a_table_of_the_datasets_library(evaluate, tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 40, 3), dtype=np.uint8)) for _ in range(3)]
    labels = [Image.fromarray(rng.choice([0, 1, 18, 19, 255], (48, 40)).astype(np.uint8)) for _ in range(3)]
    table = datasets.Dataset.from_dict({"photo": images, "classes": labels})
    table = table.cast_column("photo", datasets.Image()).cast_column("classes", datasets.Image())
    table.save_to_disk(tmp_path / "plain")
    columns = ("--image-column", "photo", "--label-column", "classes", "--accel", "none")
    result = evaluate("--dataset", str(tmp_path / "plain"), *columns, "--reduce-labels")
    assert [row.kind for row in result.rows] == ["dense"]
    assert result.protocol["ignored_labels"] == "0, 255"
    result = evaluate("--dataset", str(tmp_path / "plain"), *columns, "--ignore-label", "255", "19")
    assert result.protocol["ignored_labels"] == "19, 255"


@pytest.mark.slow
def test_half_precision_and_compiled_models_stay_close(evaluate):
    full = evaluate("--accel", ACCEL, "--pictures", "0")
    compiled = evaluate("--accel", ACCEL, "--pictures", "0", "--compile", "eager")
    np.testing.assert_array_equal(quality(compiled), quality(full))
    half = evaluate("--accel", ACCEL, "--pictures", "0", "--dtype", "bfloat16")
    np.testing.assert_allclose(quality(half)[:, 3], quality(full)[:, 3], atol=0.05)
    assert (quality(half) != quality(full)).any()


def tiny_dpt():
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    shape = {"image_size": 32, "patch_size": 8, "backbone_out_indices": [0, 1, 2, 3]}
    neck = {"neck_hidden_sizes": [4, 4, 8, 8], "fusion_hidden_size": 8, "initializer_range": 0.3}
    model = DPTForSemanticSegmentation(DPTConfig(**sizes, **shape, **neck, num_labels=CLASSES))
    return model, DPTImageProcessor(size={"height": 32, "width": 32})


def tiny_segformer():
    config = SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, decoder_hidden_size=8, num_labels=CLASSES)
    return SegformerForSemanticSegmentation(config), SegformerImageProcessor(size={"height": 64, "width": 64})


@pytest.mark.parametrize(("make", "accel"), [(tiny_dpt, None), (tiny_segformer, "none")])
@pytest.mark.parametrize("windows", [(), ("--crop", "32", "--stride", "16")])
def test_other_segmentation_models(evaluate, tmp_path, make, accel, windows):
    torch.manual_seed(0)
    for part in make():
        part.save_pretrained(tmp_path / "model")
    chosen = () if accel is None else ("--accel", accel)
    result = evaluate("--model", str(tmp_path / "model"), *chosen, *windows)
    assert np.isfinite(quality(result)).all()
    names = [row.name for row in result.rows]
    assert any("clusters" in name for name in names) == (accel is None)
    assert not any("decode_clusters" in name for name in names)  # only Segmenter's decoder runs on clusters


@pytest.mark.parametrize(
    "make",
    [
        None,
        *(pytest.param(make, marks=pytest.mark.slow) for make in (queries.tiny_maskformer, queries.tiny_oneformer)),
    ],
)
def test_models_of_queries(evaluate, tmp_path, make):
    torch.manual_seed(0)
    model, processor = (queries.make_model(), queries.make_processor()) if make is None else make()
    if make is not None:
        queries.awaken_queries(model)
    queries.save(model, processor, tmp_path / "model")
    chosen = ("--accel", queries.ACCEL) if make is not queries.tiny_maskformer else ("--accel", "none")
    result = evaluate("--model", str(tmp_path / "model"), *chosen)
    assert all(0 <= row.metrics["miou"] <= 1 for row in result.rows)
    assert "queries" in result.protocol["prediction"]
    kinds = [row.kind for row in result.rows]
    assert kinds == (
        ["dense"] if make is queries.tiny_maskformer else ["dense", "clusters", "grid pooling", *kinds[3:]]
    )
    if make is None:
        assert quality(result)[0, 3] != quality(result)[1, 3]


def test_queries_become_classes_as_in_transformers():
    processor, protocol = Mask2FormerImageProcessor(), SegmentationProtocol(tuple("abcde"))
    task = QuerySegmentationTask(processor, protocol)
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(1, 7, 6, generator=generator), torch.randn(1, 7, 24, 24, generator=generator)
    item = {"pixel_values": torch.zeros(3, 384, 384), "valid": (384, 384), "size": (50, 61)}
    (found,) = task.decode((classes, masks), [item])
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(50, 61)])
    torch.testing.assert_close(found, expected)
    assert len(found.unique()) > 2
    # What lies in the padding is not stretched over the image.
    padded = {"pixel_values": torch.zeros(3, 48, 48), "valid": (24, 48), "size": (24, 48)}
    masks[:, :, 12:] = 9 * masks[:, :, 12:]
    (above,) = task.decode((classes, masks), [padded])
    masks[:, :, 13:] = 0
    (same,) = task.decode((classes, masks), [padded])
    torch.testing.assert_close(above, same)


def test_models_of_queries_see_whole_images(main, tmp_path, capsys):
    queries.save(queries.make_model(), queries.make_processor(), tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--cpu", "--output", str(tmp_path / "out")]
    assert main([*options, "--crop", "32", "--stride", "16"]) == 2
    assert "whose queries see whole images: leave out --crop" in capsys.readouterr().err


def test_an_accelerated_folder_is_measured_at_its_own_setting(evaluate, tmp_path, model_folder):
    setting = ta.TokenClusteringConfig(cluster_after=2, cluster_grid=(3, 2), expansion="delta")
    model = ta.accelerate(SegmenterForSemanticSegmentation.from_pretrained(model_folder), setting)
    folder = save(model, tmp_path / "fast")
    stored = evaluate("--model", str(folder), "--pictures", "0")
    named = evaluate("--accel", "cluster_after=2,cluster_grid=3x2,expansion=delta", "--pictures", "0")
    assert [row.kind for row in stored.rows][:2] == ["dense", "clusters"]
    assert stored.rows[1].accel == named.rows[1].accel
    np.testing.assert_array_equal(quality(stored), quality(named))


def test_photographs(main, model_folder, tmp_path, capsys):
    photograph = tmp_path / "grey.png"
    Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(photograph)
    options = ["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), "--images", str(photograph)]
    assert main([*options, "--crop", "32", "--stride", "16"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photographs.png"}
    said = re.search(r"clusters 2x2 after 1, delta, grey: both models agree on ([\d.]+)% of", capsys.readouterr().out)
    assert 0 < float(said[1]) < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit 0 must be at least 1, for example"),
        (["--seed", "-1"], "--seed -1 must be at least 0"),
        (["--dataset", "screens"], "'screens' is neither known nor a folder; use scenes, scenes:any, ade20k:DIR"),
        (["--dataset", "cityscapes:/no/such"], "'/no/such' does not exist"),
        (["--inference", "crops"], "inference='crops' must be one of auto, whole, sliding"),
        (["--inference", "sliding"], "sliding windows need a crop"),
        (["--crop", "30"], "crop=30 must be a multiple of the patch size 8, for example 32"),
        (["--crop", "32", "--stride", "40"], "stride=40 must be from 1 to the crop of 32 pixels"),
        (["--accel", f"{ACCEL},reconstruct_after=3,decode_clusters=true"], "decode_clusters"),
        (["--images", "no.png"], "no.png does not exist"),
    ],
)
def test_mistakes_are_one_line_and_exit_two(main, model_folder, tmp_path, capsys, arguments, message):
    assert main(["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_class_counts_and_label_values_must_fit(main, model_folder, ade_model, ade20k, tmp_path, capsys):
    options = ["--cpu", "--accel", "none", "--output", str(tmp_path / "out")]
    assert main(["--model", str(model_folder), "--dataset", f"ade20k:{ade20k}", *options]) == 2
    assert "has 150 classes, but the model has 19" in capsys.readouterr().err
    assert main(["--model", str(ade_model), *options]) == 2
    assert "'scenes' has 19 classes, but the model has 150" in capsys.readouterr().err
    for number in range(3):
        save_pair(tmp_path / "data", number, (32, 40), offset=1 if number < 2 else 100)
    # Among several images, the last of which is wrong, and even where unreadable ones would be skipped.
    options += ["--model", str(ade_model), "--dataset", f"ade20k:{tmp_path / 'data'}", "--skip-bad"]
    assert main(options) == 2
    error = capsys.readouterr().err
    assert re.search(r"1 of 3 images cannot be used: label image .*validation/2.png holds the value 1[5-9]\d", error)
    assert "--skip-bad" not in error
    save_pair(tmp_path / "data", 2, (32, 40))
    Image.fromarray(np.zeros((32, 41, 3), dtype=np.uint8)).save(tmp_path / "data/images/validation/2.jpg")
    assert main(options) == 2
    assert re.search(r"validation/2.jpg has 32x41 pixels, but its label 32x40", capsys.readouterr().err)
    for number in range(3):
        path = tmp_path / f"data/annotations/validation/{number}.png"
        Image.fromarray(np.zeros((32, 40 + (number == 2)), dtype=np.uint8)).save(path)
    assert main(options) == 2
    assert "none of the 3 images has a valid label; check which label values are ignored" in capsys.readouterr().err


def test_models_that_cannot_be_measured(main, tmp_path, capsys):
    ViTConfig().save_pretrained(tmp_path / "vit")
    depth = DPTForDepthEstimation(tiny_dpt()[0].config)
    depth.save_pretrained(tmp_path / "depth")
    DPTImageProcessor().save_pretrained(tmp_path / "depth")
    cases = {
        "vit": "of type 'vit', which does no semantic segmentation; types that do:",
        "depth": "weights of a semantic segmentation model, for example auxiliary_head.",
    }
    for name, message in cases.items():
        assert main(["--model", str(tmp_path / name), "--cpu", "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_a_missing_reference_model_is_said_to_be_missing(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(reference._MODELS, "segmentation", "no-such-folder")
    assert main(["--cpu", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "reference model 'segmentation' is missing" in error
    assert json.dumps(str(Path(reference.__file__).parent / "no-such-folder"))[1:-1] in error
