"""The parts of `hf_tokaccel.evaluation` by themselves, against numbers worked out by hand."""

import json
import math
from types import SimpleNamespace

import evaluate
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    DepthAnythingConfig,
    DPTConfig,
    GLPNConfig,
    RfDetrConfig,
    SamConfig,
    SegformerConfig,
    SwinConfig,
    ZoeDepthConfig,
)

import hf_tokaccel as ta
from hf_tokaccel.checkpoint import SomeTypes
from hf_tokaccel.evaluation import (
    DepthMetric,
    DepthProtocol,
    Result,
    Row,
    UnreadableError,
    Variant,
    align,
    count_gflops,
    crop_mask,
    depth_errors,
    describe_environment,
    evaluate_variants,
    make_accelerator,
    metrics_from_sums,
    processes,
    time_interleaved,
    to_markdown,
    to_table,
)
from hf_tokaccel.evaluation.compare import first_batch
from hf_tokaccel.evaluation.depth.data import open_depth_dataset
from hf_tokaccel.evaluation.depth.pictures import draw_photographs, draw_scenes, relative_difference, thicken
from hf_tokaccel.evaluation.depth.task import DepthTask, choose_alignment
from hf_tokaccel.evaluation.pictures import Panel, cluster_borders
from hf_tokaccel.images import input_size, open_photographs, patch_size
from hf_tokaccel.measure import environment, speed
from hf_tokaccel.measure.compilation import compile_model
from hf_tokaccel.measure.progress import progress_bar
from hf_tokaccel.rivals.build import Subject, resized, steps_at
from hf_tokaccel.rivals.settings import default_settings, settings_to_show
from hf_tokaccel.tuning.encoder import describe_encoder
from hf_tokaccel.tuning.text import parse_accel


def random_depth(*size, seed=0, low=1.0, high=9.0):
    return low + (high - low) * torch.rand(*size, generator=torch.Generator().manual_seed(seed))


# Metrics


def test_errors_of_three_pixels():
    # Ratios 2, 1.25 and 1; errors 1, 1 and 0 metres.
    errors = depth_errors(torch.tensor([2.0, 5.0, 3.0]), torch.tensor([1.0, 4.0, 3.0]))
    expected = [(1 + 0.25) / 3, math.sqrt(2 / 3), (math.log10(2) + math.log10(1.25)) / 3, 1 / 3, 2 / 3, 2 / 3]
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_metrics_average_images_not_pixels():
    small, large = torch.full((1, 2), 1.0), torch.full((10, 10), 1.0)
    protocol = DepthProtocol()
    sums = protocol.sums(small * 2, small) + protocol.sums(large, large)
    assert metrics_from_sums(sums)["abs_rel"] == pytest.approx(0.5)


def test_only_measured_pixels_inside_the_caps_count():
    depth = torch.tensor([[0.0, math.inf, math.nan, 20.0, 5.0]])
    protocol = DepthProtocol(max_depth=10)
    assert protocol.valid(depth).tolist() == [[False, False, False, False, True]]
    metrics = metrics_from_sums(protocol.sums(torch.full_like(depth, 6.0), depth))
    assert metrics["abs_rel"] == pytest.approx(0.2)


def test_predictions_are_clamped_to_the_caps():
    depth = torch.tensor([[8.0, 2.0]])
    metrics = metrics_from_sums(DepthProtocol(max_depth=10).sums(torch.tensor([[99.0, -3.0]]), depth))
    assert metrics["abs_rel"] == pytest.approx((2 / 8 + (2 - 1e-3) / 2) / 2)


def test_images_without_valid_pixels_do_not_count():
    depth = random_depth(4, 4)
    protocol = DepthProtocol()
    with_empty = protocol.sums(depth * 1.1, depth) + protocol.sums(depth, torch.zeros(4, 4))
    assert metrics_from_sums(with_empty)["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    assert math.isnan(metrics_from_sums(protocol.sums(depth, torch.zeros(4, 4)))["rmse"])


def test_sums_do_not_depend_on_the_split():
    protocol = DepthProtocol(alignment="scale_shift", inverse=True)
    images = [(random_depth(6, 5, seed=i), random_depth(6, 5, seed=50 + i)) for i in range(7)]
    sums = [protocol.sums(1 / prediction, depth) for prediction, depth in images]
    whole = torch.stack(sums).sum(0)
    for cut in range(1, 7):
        parts = torch.stack(sums[:cut]).sum(0) + torch.stack(sums[cut:]).sum(0)
        torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    assert whole[-1] == 7


def test_eigen_and_garg_crops():
    eigen = crop_mask((480, 640), "eigen")
    assert eigen.sum() == (471 - 45) * (601 - 41)
    assert eigen[45, 41]
    assert eigen[470, 600]
    assert not eigen[44].any()
    assert not eigen[:, 601].any()
    rows, columns = crop_mask((375, 1242), "garg").nonzero(as_tuple=True)
    # The numbers of Garg et al. for this size.
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (153, 371, 44, 1197)
    assert crop_mask((3, 4)).all()


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.7), (-2.0, 40.0), (1e-3, 0.1)])
def test_alignment_recovers_scale_and_shift(scale, shift):
    target = random_depth(500, low=10, high=11).double()
    found = align((target - shift) / scale, target, "scale_shift")
    torch.testing.assert_close(
        torch.stack(found), torch.tensor([scale, shift], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_alignment_by_scale_alone_and_of_a_constant():
    target = random_depth(100).double()
    assert align(target / 4, target, "scale")[0].item() == pytest.approx(4)
    scale, shift = align(torch.ones(100), target, "scale_shift")
    assert (scale.item(), shift.item()) == (0, pytest.approx(target.mean().item()))
    assert [v.item() for v in align(target, 2 * target, "none")] == [1, 0]


def test_relative_predictions_are_aligned_in_inverse_depth():
    depth = random_depth(20, 30)
    depth[:3] = 0
    # Where depth is unknown the prediction must not matter.
    disparity = torch.where(depth > 0, 250 / depth.clamp(min=1) - 12, 1e6)
    aligned = DepthProtocol(alignment="scale_shift", inverse=True).to_metres(disparity, depth)
    torch.testing.assert_close(aligned[3:], depth[3:], rtol=1e-4, atol=1e-4)


def test_metric_class_works_offline_and_combines():
    depths = [random_depth(4, 5, seed=1), random_depth(3, 3, seed=2)]
    predictions = [1.2 * depth for depth in depths]
    arguments = {"predictions": [p.numpy() for p in predictions], "references": [d.numpy() for d in depths]}
    metrics = DepthMetric().compute(**arguments, max_depth=20.0)
    assert metrics == pytest.approx(
        metrics_from_sums(
            sum(DepthProtocol(max_depth=20).sums(p, d) for p, d in zip(predictions, depths, strict=True))
        )
    )
    assert metrics["delta1"] == 1
    batched = DepthMetric()
    for p, d in zip(predictions, depths, strict=True):
        batched.add_batch(predictions=[p.numpy()], references=[d.numpy()])
    assert batched.compute(max_depth=20.0) == pytest.approx(metrics)
    both = evaluate.combine({"a": DepthMetric(), "b": DepthMetric()}, force_prefix=True).compute(**arguments)
    assert both["a_rmse"] == both["b_rmse"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "centre"}, "crop='centre'.*none, eigen, garg"),
        ({"alignment": "median"}, "alignment='median'.*scale_shift"),
        ({"min_depth": 0}, "depth range 0"),
        ({"max_depth": 1e-4}, "1e-3..10"),
    ],
)
def test_bad_protocols(arguments, message):
    with pytest.raises(ValueError, match=message):
        DepthProtocol(**arguments)


def test_eigen_crop_needs_its_size():
    with pytest.raises(ValueError, match=r"480x640 pixels, not 10x20"):
        crop_mask((10, 20), "eigen")


# Models


def test_alignment_follows_the_kind_of_model():
    relative = ("scale_shift", True)
    metric = ("none", False)
    assert choose_alignment(DPTConfig()) == relative
    assert choose_alignment(DPTConfig(add_projection=True)) == metric
    assert choose_alignment(DPTConfig(depth_estimation_type="metric")) == metric
    assert choose_alignment(DepthAnythingConfig()) == relative
    assert choose_alignment(DepthAnythingConfig(depth_estimation_type="metric", max_depth=20)) == metric
    assert choose_alignment(GLPNConfig()) == metric
    assert choose_alignment(ZoeDepthConfig()) == metric
    accel = ta.TokenClusteringConfig(cluster_after=6, cluster_grid=(8, 8))
    assert choose_alignment(ta.accelerate_config(DPTConfig(), accel)) == relative
    assert choose_alignment(GLPNConfig(), "scale_shift") == ("scale_shift", False)
    with pytest.raises(ValueError, match="inverse depth up to scale and shift"):
        choose_alignment(DPTConfig(), "none")
    with pytest.raises(ValueError, match="alignment='best' must be one of auto, none, scale, scale_shift"):
        choose_alignment(DPTConfig(), "best")


class Host(nn.Module):
    """Enough of a model for the rivals: a config, and cost that grows with the image."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config or DPTConfig(patch_size=8)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, pixel_values):
        return self.conv(pixel_values)


def test_patch_size_of_model_or_backbone():
    assert patch_size(DPTConfig()) == 16
    assert patch_size(DepthAnythingConfig()) == 14
    assert patch_size(GLPNConfig(patch_sizes=[7, 3, 3, 3])) == 1


def test_default_settings_fit_depth_and_grid():
    settings = default_settings(Host(DPTConfig(num_hidden_layers=24)), (384, 512), DepthTask)
    assert [(s.cluster_after, s.cluster_grid) for s in settings[::3]] == [(12, (18, 24)), (8, (16, 21)), (6, (12, 16))]
    assert [s.expansion for s in settings[:2]] == ["nearest", "delta"]
    encoder = describe_encoder(DPTConfig(num_hidden_layers=24), (384, 512))
    for _, grid, adaptive in zip(settings[::3], settings[1::3], settings[2::3], strict=True):
        assert adaptive.adaptive
        cost = encoder.accelerated(adaptive) + encoder.matching(adaptive)
        assert cost == pytest.approx(encoder.accelerated(grid), rel=0.01)
    assert settings_to_show(settings) == settings[5:6]
    hybrid = default_settings(Host(DPTConfig(is_hybrid=True)), (384, 384), DepthTask)
    assert hybrid[0].cluster_after == 6
    # Depths 2, 2, 6, 2 and windows of 7 x 7: the third stage.
    swin = default_settings(
        Host(DPTConfig(backbone_config=SwinConfig(out_indices=[1, 2, 3, 4]))), (384, 384), DepthTask
    )
    assert [(s.cluster_after, s.cluster_grid) for s in swin[::2]] == [(7, (5, 5)), (6, (5, 5)), (6, (4, 4))]
    sam = default_settings(Host(SamConfig()), (1024, 1024), DepthTask)
    assert [(s.cluster_after, s.cluster_grid) for s in sam[::2]] == [(6, (10, 10)), (4, (9, 9)), (3, (7, 7))]
    # 4 x 4 windows of an image, 45 x 45 tokens of 14 pixels, so 11 x 11 tokens each.
    rf_detr = default_settings(Host(RfDetrConfig()), (640, 640), DepthTask)
    assert rf_detr[0].cluster_grid == (8, 8)
    with pytest.raises(ValueError, match="'segformer' model; name one, for example --accel cluster_after"):
        default_settings(Host(SegformerConfig()), (384, 384), DepthTask)


@pytest.mark.parametrize(
    "text",
    [
        "cluster_after=4,cluster_grid=12x16,expansion=delta,reconstruct_after=none,inverse_temperature=0.05",
        '{"cluster_after": 4, "cluster_grid": [12, 16], "expansion": "delta", "inverse_temperature": 0.05}',
    ],
)
def test_accel_in_both_notations(text):
    expected = {"cluster_after": 4, "cluster_grid": (12, 16), "expansion": "delta", "inverse_temperature": 0.05}
    assert parse_accel(text) == ta.TokenClusteringConfig(**expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; for example cluster_after=4"),
        ("cluster_after", "'cluster_after' where one key=value"),
        ("cluster_after=4,cluster_after=5", "'cluster_after=5'"),
        ("cluster_after=4,cluster_grid=4x4,windows=5", "windows"),
        ("cluster_after=4,cluster_grid=4x4,window=4", "window=4"),
        ("cluster_after=4", "cluster_grid"),
        ('{"cluster_after": 4,', "not JSON"),
    ],
)
def test_bad_accel(text, message):
    with pytest.raises(ValueError, match=message):
        parse_accel(text)


def test_families_that_register_late_are_of_their_kind():
    known = [DPTConfig]
    chosen = SomeTypes(known, lambda kind: kind != "sam")
    known += [SwinConfig, SamConfig]
    assert DPTConfig in chosen
    assert SwinConfig in chosen
    assert SamConfig not in chosen
    assert RfDetrConfig not in chosen
    assert list(chosen) == [DPTConfig, SwinConfig]


def test_lower_resolution_matches_the_cost():
    model, images = Host(), torch.rand(1, 3, 64, 128)
    full = count_gflops(model, images)
    subject = Subject(model, (64, 128), images)
    assert steps_at(subject, 0.5 * full) == (6, 8)  # 36/64 is nearer to a half than 25/64
    assert steps_at(subject, 2 * full) == (8, 8)
    assert steps_at(subject, 0) == (1, 8)
    assert resized(subject, 6).variant.size(64, 128) == (48, 96)


# Loop


def test_variant_scales_its_input():
    model = nn.Conv2d(3, 1, 1).to(torch.bfloat16)
    model.config = None
    images = torch.rand(2, 3, 64, 96)
    assert Variant("same", model).inputs(images).shape == images.shape
    half = Variant("half", model, scale=0.5, multiple=8)
    assert half.size(64, 96) == (32, 48)
    assert half.inputs(images).dtype == torch.bfloat16
    assert Variant("tiny", model, scale=0.01, multiple=8).size(64, 96) == (8, 8)


class CountingTask(DepthTask):
    """Scores each item once, so that sums show which items were seen; odd samples are larger images."""

    num_sums = 2

    def __init__(self, unreadable=(), wrong=()):
        self.unreadable, self.wrong = unreadable, wrong

    def encode(self, sample):
        if sample in self.unreadable:
            raise UnreadableError(f"file {sample} cannot be read")
        if sample in self.wrong:
            raise ValueError(f"file {sample} is of another size")
        return {"pixel_values": torch.zeros(3, 4 + sample % 2, 4), "number": torch.tensor(float(sample))}

    def decode(self, outputs, items):
        return list(outputs)

    def score(self, prediction, item):
        assert prediction.shape[-2:] == item["pixel_values"].shape[-2:]
        return torch.stack([item["number"], torch.ones(())]).double()


def count_items(task, number=11, **options):
    variants = [Variant(name, Host()) for name in "ab"]
    return evaluate_variants(variants, range(number), task, make_accelerator(cpu=True), batch_size=4, **options)


def test_loop_scores_images_of_any_size_once_and_in_order():
    scores = count_items(CountingTask())
    expected = torch.stack([torch.arange(11.0), torch.ones(11)], dim=1).double()
    assert torch.equal(scores.sums, expected.expand(2, 11, 2))
    assert scores.skipped == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_files_are_named_counted_and_skipped_only_on_request(workers):
    task = CountingTask(unreadable=(0, 1, 2, 3, 9))  # a whole batch among them
    with pytest.raises(ValueError, match=r"5 of 11 images cannot be used: file 0 .*file 9 .* --skip-bad$"):
        count_items(task, num_workers=workers)
    scores = count_items(task, num_workers=workers, skip_bad=True)
    assert scores.skipped == {i: f"file {i} cannot be read" for i in (0, 1, 2, 3, 9)}
    assert scores.sums[0, :, 1].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 10]
    assert scores.sums[1, :, 0].sum() == 4 + 5 + 6 + 7 + 8 + 10


def test_data_that_do_not_fit_are_never_skipped():
    task = CountingTask(unreadable=(1,), wrong=(2, *range(4, 11)))
    with pytest.raises(ValueError, match=r"^8 of 11 images cannot be used: file 2 is of another size; .*and 3 more$"):
        count_items(task, skip_bad=True)
    with pytest.raises(ValueError, match=r"^all 3 images would be skipped, the first because file 0"):
        count_items(CountingTask(unreadable=range(3)), number=3, skip_bad=True)
    with pytest.raises(ValueError, match="none of the 3 images can be read, the first because file 0"):
        first_batch(range(3), CountingTask(unreadable=range(3)), 2)
    assert first_batch(range(3), CountingTask(unreadable=(0,)), 1).shape == (1, 3, 5, 4)
    with pytest.raises(ValueError, match="file 0 is of another size"):
        first_batch(range(3), CountingTask(wrong=(0,)), 1)


class FakeProcess:
    def __init__(self, words):
        self.words = words

    def parent(self):
        return self

    def cmdline(self):
        return self.words

    def environ(self):
        return {}


@pytest.mark.parametrize("flag", [["--num_processes", "2"], ["--num-processes=2"]])
def test_a_launcher_that_starts_too_few_processes_is_refused(monkeypatch, flag):
    monkeypatch.setattr(
        psutil, "Process", lambda: FakeProcess(["python", "accelerate", "launch", "--cpu", *flag, "x.py"])
    )
    with pytest.raises(
        ValueError, match=r"asked for 2 processes but started 1.*--multi_gpu --num_processes 2 SCRIPT --cpu"
    ):
        make_accelerator(cpu=True)


def test_other_parents_and_configs(monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: FakeProcess(["bash", "--num_processes", "2"]))
    make_accelerator(cpu=True)
    monkeypatch.setattr(
        psutil, "Process", lambda: FakeProcess(["python", "bin/accelerate-launch", "x.py", "--num_processes"])
    )
    assert processes._launched_processes() == 1
    monkeypatch.setattr(psutil, "Process", lambda: FakeProcess(["bash"]))  # else it would change the threads for good
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.warns(UserWarning, match="only one is running"):
        make_accelerator(cpu=True)


def test_cores_left_idle_by_the_launcher_are_used(monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: FakeProcess(["accelerate", "launch", "x.py"]))
    monkeypatch.setattr(processes, "available_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    make_accelerator(cpu=True)
    assert chosen == [3]
    monkeypatch.setattr(FakeProcess, "environ", lambda self: {"OMP_NUM_THREADS": "1"})  # the user's own choice
    make_accelerator(cpu=True)
    monkeypatch.setattr(psutil, "Process", lambda: FakeProcess(["bash"]))
    make_accelerator(cpu=True)
    assert chosen == [3]


# Speed


def test_timing_is_interleaved_and_skips_the_warm_up():
    calls = []
    timings = time_interleaved([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert len(timings) == 2
    assert timings[0].speedup == 1
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        time_interleaved([lambda: None], rounds=0)


def test_progress_in_a_log_is_lines_of_text(monkeypatch, capsys):
    with progress_bar() as progress:
        bar = progress.add_task("evaluating", total=3)
        progress.advance(bar)
        monkeypatch.setattr("hf_tokaccel.measure.progress.SECONDS_BETWEEN_LINES", 0)
        bar = progress.add_task("timing", total=2)
        for _ in range(3):
            progress.advance(bar)
    with progress_bar(False) as progress:
        progress.advance(progress.add_task("silent", total=1))
    said = capsys.readouterr()
    assert [line.split(" after")[0] for line in said.err.splitlines()] == [
        "evaluating: 0 of 3",  # and no second line within seconds
        "timing: 0 of 2",
        "timing: 1 of 2",
        "timing: 2 of 2",  # once
    ]
    assert said.out == ""


def test_speedup_is_paired_by_round():
    # The machine is three times slower in the second round; unpaired medians would hide the factor of two.
    timing = speed.summarise([1.0, 3.0, 1.0], baseline=[2.0, 6.0, 2.0])
    assert timing.speedup == 2
    assert timing.median == 1
    assert timing.p10 <= timing.median <= timing.p90
    assert speed.summarise([4.0], [2.0]) == speed.Timing(4.0, 4.0, 4.0, 0.5)


def test_unknown_compile_backend():
    with pytest.raises(ValueError, match=r"backend 'fastest' must be one of.*inductor"):
        compile_model(Host(), "fastest")


# Data sets


def save_depth(path, values, scale):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((values * scale).round().astype(np.uint16)).save(path)


def save_image(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


DRIVE = "2011_09_26_drive_0002_sync"
LAYOUTS = {
    "nyuv2-folders": ("nyuv2", "test/rgb/0001.jpg", "test/depth/0001.png"),
    "nyuv2-sync": ("nyuv2", "bathroom/rgb_00045.jpg", "bathroom/sync_depth_00045.png"),
    "nyuv2-colors": ("nyuv2", "00000_colors.png", "00000_depth.png"),
    "kitti-selection": (
        "kitti",
        f"val_selection_cropped/image/{DRIVE}_image_0000000005_image_02.png",
        f"val_selection_cropped/groundtruth_depth/{DRIVE}_groundtruth_depth_0000000005_image_02.png",
    ),
    "kitti-raw": (
        "kitti",
        f"2011_09_26/{DRIVE}/image_02/data/0000000005.png",
        f"val/{DRIVE}/proj_depth/groundtruth/image_02/0000000005.png",
    ),
    "kitti-folders": ("kitti", "rgb/a.png", "depth/a.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    kind, image, depth = LAYOUTS[layout]
    values = random_depth(6, 8).numpy()
    save_image(tmp_path / image, (6, 8))
    save_depth(tmp_path / depth, values, {"nyuv2": 1000, "kitti": 256}[kind])
    dataset = open_depth_dataset(f"{kind}:{tmp_path}")
    (sample,) = [dataset.samples[i] for i in range(len(dataset.samples))]
    assert sample["image"].shape == (6, 8, 3)
    assert sample["image"].dtype == np.uint8
    np.testing.assert_allclose(sample["depth"].numpy(), values, atol=0.002)
    assert (dataset.crop, dataset.max_depth) == {"nyuv2": ("eigen", 10), "kitti": ("garg", 80)}[kind]


def test_missing_files_are_named(tmp_path):
    save_depth(tmp_path / "depth/a.png", np.ones((2, 2)), 1000)
    with pytest.raises(ValueError, match=r"lacks the images of 1 depth maps: rgb/a.png"):
        open_depth_dataset(f"nyuv2:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no depth maps; expected 16-bit PNG depth in 1/256 metre"):
        open_depth_dataset(f"kitti:{tmp_path / 'empty'}")


def test_depth_of_eight_bits_is_refused(tmp_path):
    save_image(tmp_path / "rgb/a.png", (2, 2))
    save_image(tmp_path / "depth/a.png", (2, 2))
    with pytest.raises(ValueError, match=r"a.png must have one channel of 16 bits"):
        open_depth_dataset(f"nyuv2:{tmp_path}").samples[0]


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("screens", "'screens' is neither known nor a folder; use scenes, nyuv2:DIR"),
        ("nyu:here", "layout 'nyu' must be one of nyuv2, kitti"),
        ("nyuv2:/no/such/folder", "'/no/such/folder' does not exist; expected 16-bit PNG"),
        ("/no/such/folder", "neither known nor a folder"),
    ],
)
def test_unknown_datasets(specification, message):
    with pytest.raises(ValueError, match=message):
        open_depth_dataset(specification)


def test_scenes_are_held_out_limited_and_seeded():
    dataset = open_depth_dataset(limit=3, size=(16, 24))
    assert len(dataset.samples) == 3
    sample = dataset.samples[1]
    assert sample["image"].shape == (16, 24, 3)
    assert sample["depth"].shape == (16, 24)
    torch.testing.assert_close(dataset.samples.__getitems__([0, 1])[1]["depth"], sample["depth"])
    other = open_depth_dataset(limit=3, size=(16, 24), seed=1).samples[1]
    assert not torch.equal(other["depth"], sample["depth"])
    for arguments, message in (({"limit": 0}, "limit=0"), ({"split": "hidden"}, "hidden")):
        with pytest.raises(ValueError, match=message):
            open_depth_dataset(**arguments)


def test_photographs():
    photographs = open_photographs()
    assert {"astronaut", "chelsea", "coffee", "rocket"} <= set(photographs)
    assert all(image.ndim == 3 and image.shape[2] == 3 for image in photographs.values())
    with pytest.raises(ValueError, match=r"nothing.png does not exist"):
        open_photographs(["nothing.png"])
    with pytest.raises(ValueError, match=r"test_evaluation.py cannot be read \(cannot identify image file"):
        open_photographs([__file__])


def test_scene_size_follows_the_image_processor():
    class Processor:
        size = {"height": 192, "width": 256}

    assert input_size(Processor()) == (192, 256)
    Processor.size = {"shortest_edge": 224}
    assert input_size(Processor()) == (224, 224)


# Report and pictures


@pytest.fixture
def result():
    def row(name, kind, group, error, accel=None):
        metrics = dict.fromkeys(("rmse", "log10", "delta1", "delta2", "delta3"), 0.5)
        seconds = {"median": 0.1, "p10": 0.09, "p90": 0.2}
        return Row(name, kind, accel, (64, 64), {"abs_rel": error, **metrics}, 2.0, 0.5, 80.0, 1.5, seconds, group)

    rows = [
        row("dense", "dense", 0, 0.1),
        row("8x8 soft", "clusters", 1, 0.13, {"cluster_grid": [8, 8]}),
        row("4x4 nearest", "clusters", 2, 0.15, {"cluster_grid": [4, 4]}),
        row("4x4 delta", "clusters", 2, 0.14, {"cluster_grid": [4, 4]}),
        row("smaller", "lower resolution", 2, 0.12),
    ]
    environment = describe_environment()
    options = {"batch_size": 8, "dtype": "float32"}
    return Result("depth-estimation", "a/model", "scenes", 7, 1, {}, options, environment, rows, ["A note"])


def test_result_survives_json(result, tmp_path):
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result
    assert json.loads((tmp_path / "result.json").read_text())["rows"][1]["accel"]["cluster_grid"] == [8, 8]


def test_tables(result):
    table = to_table(result)
    assert table.row_count == 5
    lines = to_markdown(result).splitlines()
    assert lines[2].startswith("| dense | 0.1000 | 0.500 |")
    assert all(line.count("|") == 12 for line in lines[:7])
    assert "2 FLOPs" in lines[-1]
    assert "A note" in lines[-1]


def test_the_picture_shows_the_best_row_of_the_middle_group(result):
    assert result.rows[result.row_to_show()].name == "4x4 delta"
    assert "1.50x as fast, 50 %" in result.heading(3)
    result.rows = result.rows[:1]
    assert result.row_to_show() is None


def test_environment_says_what_a_result_depends_on():
    environment = describe_environment()
    assert set(environment) == {"date", "command", "machine", "python", "versions", "git"}
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["machine"]["cores"] >= 1
    json.dumps(environment)


def test_of_a_gpu_driver_clocks_and_flags_are_said(monkeypatch):
    asked = []
    answer = "580.159.04, P0, 1980 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700.00 W, 38\n"

    def smi(command, **options):
        asked.extend(command)
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(environment.subprocess, "run", smi)
    found = environment.describe_gpu(torch.device("cuda"))
    assert "--id=GPU-1-2" in asked
    assert (found["nvidia-smi"]["driver_version"], found["nvidia-smi"]["temperature.gpu"]) == ("580.159.04", "38")
    assert found["flags"]["matmul.allow_tf32"] is torch.backends.cuda.matmul.allow_tf32
    json.dumps(found)

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.describe_gpu(torch.device("cuda"))["nvidia-smi"] is None


def test_cluster_borders():
    # Two clusters side by side on an image of 4x8 pixels: one upright line of two token sides in the middle.
    segments = cluster_borders(np.array([[0, 1], [0, 1]]), (4, 8))
    assert segments.tolist() == [[[3.5, -0.5], [3.5, 1.5]], [[3.5, 1.5], [3.5, 3.5]]]
    assert len(cluster_borders(np.zeros((3, 3), int), (6, 6))) == 0
    assert len(cluster_borders(np.arange(9).reshape(3, 3), (6, 6))) == 12


def test_sparse_points_are_thickened_for_the_eye():
    sparse = np.ma.masked_equal(np.zeros((9, 9)), 0)
    sparse[4, 4], sparse[4, 5] = 2.0, 3.0
    shown = thicken(sparse, radius=1)
    assert shown.count() == 12
    assert (shown[4, 4], shown[3, 3], shown[5, 6]) == (2, 2, 3)
    dense = np.ma.masked_equal(np.array([[1.0, 0.0, 2.0]]), 0)
    assert thicken(dense) is dense


def panel(height, width, seed, known=True):
    maps = [random_depth(height, width, seed=seed + i) for i in range(3)]
    maps[2][:2] = 0
    image = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Panel(image, maps[0], maps[1], torch.arange(6).reshape(2, 3), maps[2] if known else None)


def test_pictures_have_the_expected_size(tmp_path):
    path = draw_scenes([panel(16, 16, 0), panel(16, 16, 5)], tmp_path / "scenes.png", heading="title")
    with Image.open(path) as picture:
        width, height = picture.size
        assert width == pytest.approx(200 * (7 * 1.75 + 8 * 0.06), abs=2)
        assert height == pytest.approx(200 * (2 * 1.75 + 0.06 + 1.0), abs=2)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    for inverse in (False, True):
        path = draw_photographs(
            [panel(20, 10, 1, known=False), panel(10, 20, 2, known=False)], tmp_path / "p.png", inverse=inverse
        )
        with Image.open(path) as picture:
            assert picture.size[1] == pytest.approx(200 * (2.5 * 1.75 + 0.06 + 1.0), abs=2)


def test_relative_difference():
    dense, fast = np.array([[1.0, 2.0]]), np.array([[1.5, 2.0]])
    assert relative_difference(dense, fast, inverse=False).tolist() == [[0.5, 0.0]]
    assert relative_difference(dense + 100, fast + 100, inverse=True)[0, 0] == pytest.approx(0.5, rel=0.05)
