"""`examples/evaluate_depth.py` from end to end on a tiny random model."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_main, run_one_and_two
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    ViTConfig,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

import hf_tokaccel as ta
from hf_tokaccel.evaluation import DEPTH_METRICS, Result

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_depth.py"
ACCEL = "cluster_after=1,cluster_grid=3x3"


def make_model(seed=0, **config):
    """DPT whose depth varies between about 1 and 5: the default initialisation would give 1e-8 everywhere."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    shape = {
        "image_size": 32,
        "patch_size": 8,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [4, 4, 8, 8],
    }
    scale = {"fusion_hidden_size": 8, "initializer_range": 0.3, "depth_estimation_type": "metric"}
    model = DPTForDepthEstimation(DPTConfig(**sizes, **shape, **(scale | config))).eval()
    with torch.no_grad():
        last = model.head.head[-2]
        last.weight /= model(torch.randn(2, 3, 32, 32)).predicted_depth.std()
        last.bias.fill_(3.0)
    return model


def save(model, folder):
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    DPTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save(make_model(), tmp_path_factory.mktemp("dpt"))


@pytest.fixture(scope="session")
def main():
    return load_main(SCRIPT)


@pytest.fixture
def evaluate(main, model_folder, tmp_path):
    """Runs the script, by default on the tiny model and without pictures, and returns its result."""

    def run(*arguments):
        model = () if "--model" in arguments else ("--model", str(model_folder))
        options = ["--cpu", "--rounds", "1", "--limit", "2", "--pictures", "0", "--output", str(tmp_path)]
        assert main([*model, *options, *arguments]) == 0
        return Result.load(tmp_path / "result.json")

    return run


def quality(result):
    return np.array([[row.metrics[name] for name in DEPTH_METRICS] for row in result.rows])


def test_default_rows_on_scenes(evaluate, tmp_path, capsys):
    result = evaluate("--pictures", "2")
    kinds = [row.kind for row in result.rows]
    assert kinds[0] == "dense"
    assert kinds.count("clusters") == 6
    assert kinds.count("grid pooling") == 6
    assert {row.accel["expansion"] for row in result.rows if row.kind == "clusters"} == {"nearest", "delta"}
    assert all(row.accel["iterations"] == 0 for row in result.rows if row.kind == "grid pooling")
    lower = [row for row in result.rows if row.kind == "lower resolution"]
    assert len(lower) + len(result.notes) == 3
    assert all(max(row.input_size) < 32 and row.gflops_ratio < 1 for row in lower)
    assert result.dataset == "scenes (test, seed 0)"
    assert result.num_images == 2
    assert result.protocol["alignment"] == "none"
    assert result.environment["versions"]["torch"]
    assert np.isfinite(quality(result)).all()
    assert len(np.unique(quality(result)[:, 0])) > 3  # the settings do change what is predicted
    printed = capsys.readouterr().out
    assert "AbsRel" in printed
    assert "lower resolution" in printed
    assert (tmp_path / "result.md").read_text().startswith("| model | AbsRel")
    with Image.open(tmp_path / "scenes.png") as picture:
        assert picture.size[0] > 2000
        assert picture.size[1] == pytest.approx(200 * (2 * 1.75 + 1.06), abs=2)


def test_settings_in_every_notation_with_data_workers(evaluate, monkeypatch):
    # Nearly all of the tiny model is its head, which nothing accelerates.
    monkeypatch.setattr("hf_tokaccel.tuning.recommended.whole_flops", lambda *args: None)
    text = '{"cluster_after": 1, "cluster_grid": [3, 3], "expansion": "delta", "neighbors": 4}'
    settings = ("--accel", ACCEL, "--accel", text, "--accel", "recommended:1.2,neighbors=3")
    result = evaluate(*settings, "--num-workers", "1", "--seed", "3", "--pictures", "0")
    clusters = [row for row in result.rows if row.kind == "clusters"]
    assert [row.accel["expansion"] for row in clusters] == ["nearest", "delta", "delta"]
    assert [row.accel["neighbors"] for row in clusters] == [20, 4, 3]
    assert clusters[2].accel["similarity_on"] == "normalized"
    assert clusters[1].accel["neighbors"] == 4
    assert clusters[1].name == "clusters 3x3 after 1, delta, neighbors=4"
    assert result.dataset == "scenes (test, seed 3)"


def test_compiled_models_give_the_same_maps(main, model_folder, tmp_path, capsys):
    options = ["--model", str(model_folder), "--cpu", "--output", str(tmp_path), "--accel", ACCEL]
    photograph = tmp_path / "grey.png"
    Image.fromarray(np.arange(40 * 40, dtype=np.uint8).reshape(40, 40)).save(photograph)
    lines = []
    for compiled in ([], ["--compile", "eager"]):
        assert main([*options, *compiled, "--images", str(photograph)]) == 0
        lines.append(re.findall("mean relative difference.*", capsys.readouterr().out))
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]


def test_photographs(main, model_folder, tmp_path, capsys):
    photograph = tmp_path / "grey.png"
    Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(photograph)
    options = ["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out")]
    assert main([*options, "--images", str(photograph), "--accel", ACCEL, "--accel", f"{ACCEL},expansion=soft"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photographs-1.png", "photographs-2.png"}
    assert main([*options, "--images"]) == 0
    with Image.open(tmp_path / "out" / "photographs.png") as picture:
        assert min(picture.size) > 1000
    printed = capsys.readouterr().out
    for name in ("grey", "astronaut", "chelsea"):
        assert re.search(rf"{name}: mean relative difference \d+\.\d+", printed)


def test_a_table_of_the_datasets_library(evaluate, tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 40, 3), dtype=np.uint8)) for _ in range(3)]
    depths = [Image.fromarray(rng.integers(500, 9000, (24, 20)).astype(np.uint16)) for _ in range(3)]
    table = datasets.Dataset.from_dict({"photo": images, "range": depths})
    table = table.cast_column("photo", datasets.Image()).cast_column("range", datasets.Image())
    table.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(validation=table).save_to_disk(tmp_path / "splits")
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "test.parquet")
    columns = ("--image-column", "photo", "--depth-column", "range", "--depth-scale", "1000", "--accel", "none")
    results = [
        evaluate("--dataset", str(tmp_path / name), "--split", split, *columns, "--max-depth", "8")
        for name, split in (("plain", "test"), ("splits", "validation"), ("parquet", "test"))
    ]
    assert results[0].protocol["max_depth"] == 8
    assert [row.kind for row in results[0].rows] == ["dense"]
    for other in results[1:]:
        np.testing.assert_array_equal(quality(other), quality(results[0]))


def test_half_precision_stays_close(evaluate):
    full = evaluate("--accel", ACCEL, "--pictures", "0")
    half = evaluate("--accel", ACCEL, "--pictures", "0", "--dtype", "bfloat16")
    np.testing.assert_allclose(quality(half)[:, :3], quality(full)[:, :3], rtol=0.1)
    assert (quality(half) != quality(full)).any()


def save_pair(folder, names, size, units, seed):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / names[0])
    Image.fromarray((rng.uniform(1, 9, size) * units).astype(np.uint16)).save(folder / names[1])


def test_nyuv2_layout(evaluate, tmp_path):
    for i in range(3):
        save_pair(tmp_path / "nyu", (f"rgb_{i:05}.jpg", f"sync_depth_{i:05}.png"), (480, 640), 1000, i)
    result = evaluate("--dataset", f"nyuv2:{tmp_path / 'nyu'}", "--accel", ACCEL, "--pictures", "1")
    assert result.num_images == 2
    assert (result.protocol["crop"], result.protocol["max_depth"]) == ("eigen", 10)
    assert (tmp_path / "scenes.png").stat().st_size > 10_000


def test_a_file_that_is_cut_off_is_skipped_only_on_request(main, model_folder, tmp_path, capsys):
    for i in range(3):
        save_pair(tmp_path / "kitti", (f"rgb/{i}.png", f"depth/{i}.png"), (40, 80), 256, i)
    cut = tmp_path / "kitti" / "depth" / "0.png"
    cut.write_bytes(cut.read_bytes()[:200])
    options = ["--model", str(model_folder), "--dataset", f"kitti:{tmp_path / 'kitti'}", "--accel", ACCEL, "--cpu"]
    options += ["--rounds", "1", "--output", str(tmp_path / "out")]
    assert main(options) == 2
    assert re.search(
        r"1 of 3 images cannot be used: \S+depth/0.png cannot be read .*--skip-bad", capsys.readouterr().err
    )
    assert main([*options, "--skip-bad"]) == 0
    result = Result.load(tmp_path / "out" / "result.json")
    assert result.num_images == 2
    assert len(result.skipped) == 1
    assert (tmp_path / "out" / "scenes.png").exists()


def test_kitti_layout_with_alignment(evaluate, tmp_path):
    names = ("image/d_sync_image_1_image_02.png", "groundtruth_depth/d_sync_groundtruth_depth_1_image_02.png")
    save_pair(tmp_path / "kitti", names, (120, 400), 256, 0)
    arguments = ("--dataset", f"kitti:{tmp_path / 'kitti'}", "--accel", "none")
    raw, aligned = evaluate(*arguments), evaluate(*arguments, "--alignment", "scale_shift")
    assert (aligned.protocol["crop"], aligned.protocol["alignment"]) == ("garg", "scale_shift")
    assert aligned.rows[0].metrics["rmse"] < raw.rows[0].metrics["rmse"]


def test_relative_models_are_aligned_by_default(evaluate, tmp_path):
    folder = save(make_model(depth_estimation_type="relative"), tmp_path / "relative")
    result = evaluate("--model", str(folder), "--accel", ACCEL, "--pictures", "1")
    assert (result.protocol["alignment"], result.protocol["inverse"]) == ("scale_shift", True)


def tiny_glpn():
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
    return GLPNForDepthEstimation(
        GLPNConfig(**sizes, decoder_hidden_size=8, initializer_range=0.3)
    ), GLPNImageProcessor()


def tiny_zoedepth():
    backbone = BeitConfig(**TINY, image_size=64, patch_size=16, **TAPS, use_relative_position_bias=True)
    heads = {"patch_transformer_hidden_size": 16, "patch_transformer_intermediate_size": 32}
    bins = {"bottleneck_features": 8, "bin_embedding_dim": 8, "num_relative_features": 8}
    config = ZoeDepthConfig(backbone_config=backbone, **HEAD, **heads, **bins)
    return ZoeDepthForDepthEstimation(config), ZoeDepthImageProcessor(size={"height": 64, "width": 64})


def tiny_depth_anything():
    backbone = Dinov2Config(**TINY, image_size=70, patch_size=14, **TAPS)
    config = DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=16, **HEAD, initializer_range=0.3)
    return DepthAnythingForDepthEstimation(config), DPTImageProcessor(
        size={"height": 70, "width": 70}, keep_aspect_ratio=True, ensure_multiple_of=14
    )


TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
TAPS = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
HEAD = {"neck_hidden_sizes": [4, 4, 8, 8], "fusion_hidden_size": 8}


@pytest.mark.parametrize(
    ("make", "accel", "alignment"),
    [(tiny_glpn, "none", "none"), (tiny_zoedepth, "none", "none"), (tiny_depth_anything, ACCEL, "scale_shift")],
)
def test_other_depth_models(evaluate, tmp_path, make, accel, alignment):
    torch.manual_seed(0)
    model, processor = make()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    # Two images of different shapes: an image processor that keeps the aspect ratio makes them different inputs.
    save_pair(tmp_path / "data", ("rgb/0.png", "depth/0.png"), (60, 100), 256, 0)
    save_pair(tmp_path / "data", ("rgb/1.png", "depth/1.png"), (64, 64), 256, 1)
    result = evaluate("--model", str(tmp_path / "model"), "--dataset", f"kitti:{tmp_path / 'data'}", "--accel", accel)
    assert np.isfinite(quality(result)).all()
    assert result.protocol["alignment"] == alignment
    assert any(row.kind == "clusters" for row in result.rows) == (accel != "none")


def test_an_accelerated_folder_is_measured_at_its_own_setting(evaluate, tmp_path, model_folder):
    setting = ta.TokenClusteringConfig(cluster_after=2, cluster_grid=(3, 2), expansion="soft")
    folder = save(ta.accelerate(DPTForDepthEstimation.from_pretrained(model_folder), setting), tmp_path / "fast")
    stored = evaluate("--model", str(folder), "--pictures", "0")
    named = evaluate("--accel", "cluster_after=2,cluster_grid=3x2,expansion=soft", "--pictures", "0")
    assert [row.kind for row in stored.rows][:2] == ["dense", "clusters"]
    assert stored.rows[1].accel == named.rows[1].accel
    np.testing.assert_array_equal(quality(stored), quality(named))


@pytest.mark.slow  # by default segmentation's is run, through the same loop
def test_two_processes_give_the_same_metrics(main, model_folder, tmp_path):
    # Seven images in batches of two: neither the images nor the batches divide evenly.
    options = ["--model", str(model_folder), "--cpu", "--rounds", "1", "--limit", "7", "--batch-size", "2"]
    options += ["--accel", ACCEL, "--pictures", "0"]
    one, two, printed = run_one_and_two(main, SCRIPT, options, tmp_path)
    assert one.num_images == two.num_images == 7
    np.testing.assert_allclose(quality(two), quality(one), rtol=1e-6)
    assert printed.count("AbsRel") == 1  # only the first process reports


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit 0 must be at least 1, for example"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--dtype", "int4"], "dtype='int4' must be one of auto, float32, float16, bfloat16"),
        (["--dataset", "screens"], "'screens' is neither known nor a folder; use scenes, nyuv2:DIR"),
        (["--dataset", "kitti:/no/such"], "'/no/such' does not exist"),
        (["--accel", "cluster_after=1,cluster_grid=3x3,colour=red"], "colour"),
        (["--accel", "cluster_after=9,cluster_grid=3x3"], "cluster_after=9"),
        (["--accel", "recommended:99"], "speedup=99.0 cannot be reached"),
        (["--accel", "cluster_after=1,cluster_grid=9x9"], "cluster_grid"),
        (["--accel", "none", "--accel", ACCEL], "accel none stands alone"),
        (["--alignment", "best"], "alignment='best' must be one of auto, none, scale, scale_shift"),
        (["--model", "/no/such/model"], "folder '/no/such/model' does not exist"),
        (["--compile", "fastest"], "backend 'fastest'"),
        (["--images", "no.png"], "no.png does not exist"),
        (["--images", "--accel", "none"], "--images compares with an accelerated model"),
    ],
)
def test_mistakes_are_one_line_and_exit_two(main, model_folder, tmp_path, capsys, arguments, message):
    assert main(["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_data_without_truth_are_refused(main, model_folder, tmp_path, capsys):
    save_pair(tmp_path, ("rgb/a.png", "depth/a.png"), (40, 80), 0, 0)
    options = ["--dataset", f"kitti:{tmp_path}", "--model", str(model_folder), "--accel", "none", "--cpu"]
    assert main([*options, "--output", str(tmp_path / "out")]) == 2
    assert "none of the 1 images has a valid label" in capsys.readouterr().err


def test_models_that_cannot_be_measured(main, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    ViTConfig().save_pretrained(tmp_path / "vit")
    headless = save(make_model(), tmp_path / "headless")
    DPTForDepthEstimation.from_pretrained(headless).dpt.save_pretrained(headless)
    config = json.loads((headless / "config.json").read_text()) | {"architectures": ["DPTForDepthEstimation"]}
    (headless / "config.json").write_text(json.dumps(config))
    cases = {"empty": "has no config.json", "vit": "of type 'vit', which estimates no depth", "headless": "lacks"}
    for name, message in cases.items():
        assert main(["--model", str(tmp_path / name), "--cpu", "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
