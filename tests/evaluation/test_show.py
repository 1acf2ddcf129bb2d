"""`hf_tokaccel show` and `hf_tokaccel plot`, and what they are made of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel.cli import app
from hf_tokaccel.evaluation import Result
from hf_tokaccel.evaluation.pictures import cluster_borders
from hf_tokaccel.evaluation.showing import find_task, load_shown, make_views, mean_colours, open_sample, start_after
from hf_tokaccel.results.pareto import Plot, Point, _window, draw_pareto, front, load_plot, method_of

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = sorted(DOCS.glob("evaluate_*/result.json"))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_mean_colours_of_clusters_that_do_not_divide_the_image():
    image = np.zeros((5, 4, 3), np.uint8)
    image[:3, :, 0] = 100
    image[3:, :2, 1] = [[10, 20], [30, 40]]
    labels = np.array([[7, 7], [2, 5]])  # rows 0 to 2 and 3 to 4
    mosaic = mean_colours(image, labels)
    assert (mosaic[:3] == (100, 0, 0)).all()
    assert (mosaic[3:, :2] == (0, 25, 0)).all()
    assert not mosaic[3:, 2:].any()


@pytest.mark.parametrize(
    ("model", "accel", "setting"),
    [
        ("depth", "recommended:1.5,window=7", "clusters "),
        ("depth", "cluster_after=2,clusters=0.5", "clusters 0.5 after 2, delta"),
        ("segmentation", "cluster_after=4,cluster_grid=12x12", "clusters 12x12 after 4, soft"),
        ("panoptic", "cluster_after=6,cluster_grid=3x3", "clusters 3x3 after 6 to 10, soft"),
    ],
)
def test_shows_a_scene(tmp_path, model, accel, setting):
    out = tmp_path / "new" / "clusters.png"
    result = run("show", "scene:1", "--model", model, "--accel", accel, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    (written,) = json.loads(result.stdout)
    assert written["picture"] == str(out)
    (said,) = (text for name, text in written["settings"].items() if name.startswith(setting))
    assert "of the GFLOPs" in said
    width, height = Image.open(out).size
    assert 1 < width / height < 2  # two lines of four square cells, with text


@pytest.mark.parametrize("task", ["depth", "segmentation"])
def test_the_regions_of_the_last_of_several_steps_are_drawn(task):
    loaded = load_shown(task)
    sample = open_sample("scene:1", loaded)
    setting = ta.TokenClusteringConfig(cluster_after=(1, 3), clusters=(0.5, 40))
    moved = start_after(setting, 2)
    assert moved.cluster_after == (2, 4)
    with torch.inference_mode():
        _, views = make_views(loaded, sample, [setting, moved])
    for view in views:
        labels = view.panel.labels.numpy()
        assert len(np.unique(labels)) == 40
        borders = cluster_borders(labels, view.panel.image.shape[:2])
        differing = (labels[:, 1:] != labels[:, :-1]).sum() + (labels[1:] != labels[:-1]).sum()
        assert borders.shape == (differing, 2, 2)
    assert not torch.equal(views[0].panel.labels, views[1].panel.labels)


def test_layers_and_settings_are_combined_and_several_models_get_files_of_their_own(tmp_path):
    setting = "cluster_after=2,cluster_grid=6x6"
    arguments = ["--model", "depth", "--model", "segmentation", "--accel", setting, "--after", 3, "--after", 8]
    result = run("show", "astronaut", *arguments, "--out", tmp_path / "a.png", "--json")
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    assert [Path(one["picture"]).name for one in written] == ["a-depth.png", "a-segmentation.png"]
    for one in written:
        assert Path(one["picture"]).is_file()
        assert [name.split(",")[0] for name in one["settings"]] == ["clusters 6x6 after 3", "clusters 6x6 after 8"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "astronaut"),
        (["missing.jpg"], "does not exist"),
        (["scene:x"], "scene:7"),
        (["scene", "--out", "picture.jpg"], "must end in .png"),
        (["scene", "--accel", "none"], "no clusters to show"),
        (["scene", "--accel", "cluster_after=40,cluster_grid=4"], "40"),
        (["scene", "--accel", "recommended:9999"], "speedup=9999.0 cannot be reached"),
    ],
)
def test_mistakes_of_the_user_are_one_line(arguments, said):
    result = run("show", "--model", "depth", *arguments)
    assert result.exit_code == 2
    *_, last = result.output.strip().splitlines()  # after the progress bars of loading
    assert last.startswith("error: ")
    assert said in last


def test_a_file_that_is_no_image_and_a_model_that_is_not_shown(tmp_path):
    path = tmp_path / "no.png"
    path.write_text("nothing")
    assert run("show", path, "--model", "depth").exit_code == 2
    from transformers import ViTConfig

    ViTConfig(architectures=["ViTForImageClassification"]).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="Intel/dpt-large"):
        find_task(str(tmp_path / "vit"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_plots_of_committed_results(path, tmp_path):
    out = tmp_path / "pareto.png"
    result = run("plot", path, "--out", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out).size[0] > 1000
    plot, rows = load_plot(path), Result.load(path).rows
    assert [(p.kind, p.gflops, p.speedup) for p in plot.points] == [(r.kind, r.gflops, r.speedup) for r in rows]


def points(*values):
    return [Point("m", "clusters", gflops, 1 / gflops, quality) for gflops, quality in values]


def test_front_holds_what_nothing_beats():
    cloud = points((4, 10), (3, 8), (3, 9), (2, 7), (1, 7.5), (5, 9.9))
    assert [(p.gflops, p.quality) for p in front(cloud, "gflops", True)] == [(1, 7.5), (3, 9), (4, 10)]
    assert [(p.gflops, p.quality) for p in front(cloud, "speedup", False)] == [(1, 7.5), (2, 7)]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dense", "dense"),
        ("clusters 17x17 after 5, soft, decode_clusters=False", "clusters, soft, decode_clusters=False"),
        ("grid pooling 4x4 after 7 to 10, delta", "grid pooling, delta"),
        ("lower resolution 168x168", "lower resolution"),
        ("token merging 12 per layer", "token merging"),
    ],
)
def test_a_method_is_a_row_without_its_size(name, method):
    assert method_of(name) == method


def test_rows_far_from_all_others_leave_the_range_and_are_named(tmp_path):
    near = points((4, 0.090), (3, 0.092), (2, 0.093))
    far = Point("lower resolution", "lower resolution", 2, 2, 0.16)
    low, high = _window([*near, far])
    assert low < 0.090 < 0.093 < high < 0.16
    assert _window(near) is None
    assert draw_pareto(Plot("t", "q", False, [*near, far]), tmp_path / "p.png").is_file()


def test_plot_of_a_benchmark_takes_its_first_mode(tmp_path):
    row = {"kind": "clusters", "gflops": 2.0, "speedup": 1.5, "agreement": {"same_class": 0.9}, "mode": "float32"}
    rows = [
        {**row, "name": "dense", "kind": "dense", "agreement": {"same_class": 1.0}},
        {**row, "name": "clusters 4x4 after 2, soft"},
        {**row, "name": "clusters 4x4 after 2, soft", "mode": "bfloat16"},
    ]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"model": "m", "image_size": [32, 48], "batch_size": 1, "rows": rows}))
    plot = load_plot(path)
    assert [p.quality for p in plot.points] == [1.0, 0.9]
    assert plot.higher_is_better


@pytest.mark.parametrize("text", ["nothing", "[]", "{}", '{"rows": []}', '{"rows": [{"name": "x"}]}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    result = run("plot", path)
    assert result.exit_code == 2
    assert "hf_tokaccel evaluate" in " ".join(result.output.split())


def test_a_scene_keeps_its_truth_only_where_the_model_speaks_of_it():
    from types import SimpleNamespace

    processor = SimpleNamespace(size={"height": 32, "width": 32})

    def sample(**protocol):
        task = SimpleNamespace(name="depth-estimation", processor=processor, protocol=SimpleNamespace(**protocol))
        return open_sample("scene:2", SimpleNamespace(task=task))

    assert torch.is_tensor(sample(inverse=False)["depth"])
    assert "depth" not in sample(inverse=True)
    assert sample(inverse=True)["name"] == "scene 2"


def test_windows_of_one_image_are_put_together(tmp_path):
    """Swin clusters each window on its own; UperNet is no model of sliding windows."""
    from transformers import SegformerImageProcessor, SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    from hf_tokaccel import TokenClusteringConfig
    from hf_tokaccel.evaluation.showing import load_shown, make_views

    sizes = {"embed_dim": 16, "depths": [1, 1, 4, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
    swin = SwinConfig(image_size=128, out_features=["stage1", "stage2", "stage3", "stage4"], **sizes)
    sizes = {"hidden_size": 16, "auxiliary_channels": 16, "auxiliary_in_channels": 64, "pool_scales": [1, 2]}
    config = UperNetConfig(backbone_config=swin, num_labels=5, **sizes)
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 128, "width": 128}).save_pretrained(tmp_path)
    loaded = load_shown(str(tmp_path))
    setting = TokenClusteringConfig(cluster_after=3, cluster_grid=2)
    _, (view,) = make_views(loaded, open_sample("astronaut", loaded), [setting])
    labels = view.panel.labels
    assert labels.shape == (8, 8)  # of stage 3, in 2 x 2 windows of 4 clusters at most
    windows = [set(part.unique().tolist()) for rows in labels.chunk(2) for part in rows.chunk(2, -1)]
    assert sum(map(len, windows)) == len(set().union(*windows)) <= 16
