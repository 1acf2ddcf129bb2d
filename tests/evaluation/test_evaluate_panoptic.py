"""`examples/evaluate_panoptic.py` from end to end on a tiny random model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_main, run_one_and_two
from transformers import (
    CLIPTokenizer,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    OneFormerProcessor,
    SegformerConfig,
    SwinConfig,
)

import hf_tokaccel as ta
from hf_tokaccel.evaluation import Result, Variant
from hf_tokaccel.evaluation.panoptic.data import open_panoptic_dataset
from hf_tokaccel.evaluation.panoptic.task import PanopticProtocol, PanopticTask
from hf_tokaccel.measure.metrics.panoptic import VOID, code
from hf_tokaccel.scenes import CLASS_NAMES

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_panoptic.py"
ACCEL = "cluster_after=2,cluster_grid=2x2"
NAMES = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}
BACKBONE = {
    **{"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 4, 1, 1], "num_heads": [1, 2, 2, 2]},
    **{"window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
}
# A random model is sure of nothing: all queries count, however much of their mask is left.
ALL = ("--threshold", "0", "--overlap", "0")


def make_model():
    """Mask2Former whose random queries have masks and classes that depend on the image."""
    torch.manual_seed(0)
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16}
    config = Mask2FormerConfig(backbone_config=SwinConfig(**BACKBONE), num_queries=8, init_std=0.5, **sizes, **NAMES)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("model.pixel_level_module.encoder") and weight.ndim > 1:
                weight.normal_(std=0.3)
        model.class_predictor.weight.normal_(std=2)
        model.class_predictor.bias[-1] = -100  # never "no object"
    return model


def make_processor(cls=Mask2FormerImageProcessor, side=64):
    return cls(size={"height": side, "width": side}, size_divisor=32)


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save(make_model(), make_processor(), tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="session")
def main():
    return load_main(SCRIPT)


@pytest.fixture
def evaluate(main, model_folder, tmp_path):
    """Runs the script, by default on the tiny model and without pictures, and returns its result."""

    def run(*arguments):
        model = () if "--model" in arguments else ("--model", str(model_folder))
        options = ["--cpu", "--rounds", "1", "--limit", "2", "--pictures", "0", "--output", str(tmp_path / "out")]
        assert main([*model, *ALL, *options, *arguments]) == 0
        return Result.load(tmp_path / "out" / "result.json")

    return run


def quality(result):
    parts = [f"{name}{part}" for part in ("", "_things", "_stuff") for name in ("pq", "sq", "rq")]
    numbers = [[row.metrics[name] for name in (*parts, "kept")] for row in result.rows]
    ends = [[*row.intervals["pq"], *row.intervals.get("kept", (1, 1))] for row in result.rows]
    per_class = [[-1 if value is None else value for value in row.classes.values()] for row in result.rows]
    return np.concatenate([numbers, ends, per_class], axis=1)


def test_default_rows_on_scenes(evaluate, tmp_path, capsys):
    result = evaluate("--pictures", "1")
    names = [row.name for row in result.rows if row.kind == "clusters"]
    # The second stage: 2 of its 4 blocks at full resolution, then 1, with 3x3 and 2x2 clusters of 4x4 tokens.
    assert names == [
        f"clusters {s} after {n}, {e}"
        for s, n in (("3x3", "3 to 5"), ("2x2", "2 to 5"))
        for e in ("soft", "nearest", "delta")
    ]
    kinds = [row.kind for row in result.rows]
    assert kinds.count("grid pooling") == 4
    smaller = [note for note in result.notes if note.startswith("No lower resolution")]
    assert kinds.count("lower resolution") + len(smaller) == 2
    assert len(result.notes) - len(smaller) == 2  # windows leave no token merging
    assert (result.task, result.dataset, result.num_images) == (
        "panoptic-segmentation",
        "scenes of typical materials (test, seed 0)",
        2,
    )
    assert (result.protocol["num_classes"], result.protocol["num_things"], result.protocol["threshold"]) == (19, 12, 0)
    printed = capsys.readouterr().out
    assert "PQ things" in printed
    assert "PQ per class" in printed
    assert (tmp_path / "out" / "result.md").read_text().startswith("| model | PQ")
    with Image.open(tmp_path / "out" / "scenes.png") as picture:
        assert picture.size[0] == pytest.approx(200 * (6 * 1.75 + 7 * 0.06), abs=2)


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Images of two sizes whose truth is what the dense model finds, moved a little in some; two files are cut off."""
    folder = tmp_path_factory.mktemp("coco")
    labels, annotations, images = folder / "annotations/panoptic_val2017", [], []
    for path in (labels, folder / "val2017"):
        path.mkdir(parents=True)
    things = tuple(index >= 7 for index in range(19))
    task = PanopticTask(make_processor(), PanopticProtocol(CLASS_NAMES, things, threshold=0, overlap=0))
    dense = Variant("dense", make_model())
    for number in range(6):
        size = (64, 64) if number % 2 else (48, 80)
        scenes = open_panoptic_dataset("scenes", labels=CLASS_NAMES, limit=6, size=size)
        image = scenes.samples[number]["image"]
        found = task.predict(dense, {"image": image}).roll(number // 2, 0)
        found[:2, :9] = VOID
        ids = np.where(found == VOID, 0, found + 1)
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)).save(
            labels / f"{number}.png"
        )
        Image.fromarray(image).save(folder / "val2017" / f"{number}.png")
        # Every class has its category, in another order than the model has them.
        segments = [
            {"id": i, "category_id": 100 - (i - 1) // code(1, 0), "iscrowd": 0} for i in np.unique(ids).tolist()
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        annotations[-1]["segments_info"] = [segment for segment in segments if segment["id"]]
        images.append({"id": number, "file_name": f"{number}.png"})
    categories = [{"id": 100 - i, "name": name.title(), "isthing": int(i >= 7)} for i, name in enumerate(CLASS_NAMES)]
    index = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations/panoptic_val2017.json").write_text(json.dumps(index))
    for path in (folder / "val2017/2.png", labels / "5.png"):
        path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.mark.slow
def test_two_processes_give_exactly_the_same_metrics_and_skip_the_same_files(
    main, coco, model_folder, tmp_path, capsys
):
    options = ["--model", str(model_folder), "--dataset", f"coco:{coco}", "--cpu", "--rounds", "1", "--accel", ACCEL]
    options += ["--batch-size", "2", "--pictures", "0", *ALL]
    assert main([*options, "--output", str(tmp_path / "bad")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"2 of 6 images cannot be used: .*val2017/2.png cannot be read.*panoptic_val2017/5.png", error)
    assert error.endswith("--skip-bad")
    assert not (tmp_path / "bad" / "result.json").exists()
    options += ["--skip-bad"]
    one, two, printed = run_one_and_two(main, SCRIPT, options, tmp_path)
    np.testing.assert_array_equal(quality(two), quality(one))
    assert one.num_images == two.num_images == 4
    assert len(one.skipped) == len(two.skipped) == 2
    dense, fast = one.rows[:2]
    # The truth is what the dense model finds, moved by up to 2 rows.
    assert 0.5 < dense.metrics["pq"] < 1
    assert 0 < fast.metrics["pq"] < dense.metrics["pq"]
    assert dense.metrics["pq_things"] > 0
    assert fast.metrics["kept"] == pytest.approx(fast.metrics["pq"] / dense.metrics["pq"])
    assert printed.count("PQ things") == 1  # only the first process reports


def test_an_accelerated_folder_is_measured_at_its_own_setting(evaluate, tmp_path, model_folder):
    setting = ta.TokenClusteringConfig(cluster_after=2, cluster_grid=(2, 2), expansion="delta")
    model = ta.accelerate(Mask2FormerForUniversalSegmentation.from_pretrained(model_folder), setting)
    folder = save(model, make_processor(), tmp_path / "fast")
    stored = evaluate("--model", str(folder), "--pictures", "0")
    named = evaluate("--accel", f"{ACCEL},expansion=delta", "--pictures", "0")
    assert [row.kind for row in stored.rows][:2] == ["dense", "clusters"]
    assert stored.rows[1].accel == named.rows[1].accel
    np.testing.assert_array_equal(quality(stored), quality(named))


def tiny_maskformer():
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    decoder = {"model_type": "detr", "d_model": 16, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 8}
    decoder |= {"decoder_attention_heads": 2, "decoder_ffn_dim": 16, "encoder_attention_heads": 2}
    config = MaskFormerConfig(backbone_config=SwinConfig(**BACKBONE), decoder_config=decoder, **sizes, **NAMES)
    return MaskFormerForInstanceSegmentation(config), make_processor(MaskFormerImageProcessor)


def tiny_eomt():
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_blocks": 1}
    config = EomtConfig(**sizes, image_size=64, patch_size=8, num_upscale_blocks=1, num_queries=8, **NAMES)
    processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    return EomtForUniversalSegmentation(config), processor


def tiny_oneformer():
    """With a tokenizer of single characters."""
    sizes = {"conv_dim": 32, "mask_dim": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16, "encoder_layers": 1}
    sizes |= {"decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16, "num_queries": 8}
    config = OneFormerConfig(backbone_config=SwinConfig(**BACKBONE), task_seq_len=33, **sizes, **NAMES)
    words = [letter + end for end in ("", "</w>") for letter in "acehiknopst"]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    processor = OneFormerProcessor(
        OneFormerImageProcessor(size={"height": 64, "width": 64}),
        CLIPTokenizer(vocab=vocabulary, merges=[]),
        task_seq_length=33,
    )
    return OneFormerForUniversalSegmentation(config), processor


def awaken_queries(model):
    """Random queries of which each finds something, and not all the same."""
    predictor = getattr(model, "class_predictor", None)
    if predictor is None:
        predictor = model.model.transformer_module.decoder.class_embed
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
        predictor.weight.normal_(std=2)
        predictor.bias[-1] = -100  # never "no object"


@pytest.mark.parametrize(
    ("make", "accel"),
    [(tiny_maskformer, "none"), (tiny_eomt, "cluster_after=1,cluster_grid=4x4"), (tiny_oneformer, ACCEL)],
)
def test_other_panoptic_models(evaluate, tmp_path, make, accel):
    torch.manual_seed(0)
    model, processor = make()
    awaken_queries(model)
    save(model, processor, tmp_path / "model")
    result = evaluate("--model", str(tmp_path / "model"), "--accel", accel)
    assert [row.kind for row in result.rows][:2] == ["dense", "clusters"][: len(result.rows)]
    assert len(result.rows) == 1 or accel != "none"
    assert all(0 <= row.metrics["pq"] <= 1 for row in result.rows)


def test_photographs(main, model_folder, tmp_path, capsys):
    photograph = tmp_path / "grey.png"
    Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(photograph)
    options = ["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), "--images", str(photograph)]
    assert main([*options, *ALL, "--accel", ACCEL]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photographs.png"}
    said = re.search(r"soft, grey: PQ of its segments against the dense model's is ([\d.]+)", capsys.readouterr().out)
    assert 0 <= float(said[1]) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "screens"], "'screens' is not known; use scenes, scenes:any, coco:DIR, ade20k:DIR"),
        (["--dataset", "coco:/no/such"], "'/no/such' does not exist; expected panoptic_val2017.json"),
        (["--threshold", "1"], "threshold=1.0 must be at least 0 and below 1, for example 0.8"),
        (["--overlap", "-1"], "overlap=-1.0 must be at least 0"),
        (["--accel", "cluster_after=2,cluster_grid=4x4"], "square smaller than the 4 x 4 tokens of a window"),
    ],
)
def test_mistakes_are_one_line_and_exit_two(main, model_folder, tmp_path, capsys, arguments, message):
    assert main(["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_segments_and_models_must_fit(main, coco, model_folder, tmp_path, capsys):
    index = json.loads((coco / "annotations/panoptic_val2017.json").read_text())
    index["categories"][3]["name"] = "gate"
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/panoptic_val2017").symlink_to(coco / "annotations/panoptic_val2017")
    (folder / "val2017").symlink_to(coco / "val2017")
    (folder / "annotations/panoptic_val2017.json").write_text(json.dumps(index))
    options = ["--dataset", f"coco:{folder}", "--cpu", "--accel", "none", "--output", str(tmp_path / "out")]
    assert main(["--model", str(model_folder), *options]) == 2
    assert "'gate' is not among the model's; the model's 'door' is not in the data set" in capsys.readouterr().err
    index["categories"][3]["name"] = "door"
    index["annotations"][0]["segments_info"].append({"id": 77, "category_id": 100})
    (folder / "annotations/panoptic_val2017.json").write_text(json.dumps(index))
    assert main(["--model", str(model_folder), *options, "--skip-bad"]) == 2
    error = capsys.readouterr().err
    assert "/0.png: segment 77 in the JSON file has no pixel" in error
    assert "--skip-bad" not in error
    SegformerConfig().save_pretrained(tmp_path / "segformer")
    assert main(["--model", str(tmp_path / "segformer"), *options]) == 2
    assert "of type 'segformer', which does no panoptic segmentation of images by queries" in capsys.readouterr().err
