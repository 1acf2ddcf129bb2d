"""The search for a setting: budgets, determinism, agreement by task, bad input, command."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from test_sam import TINY as TINY_SAM
from test_swin import TINY as TINY_SWIN
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    DPTConfig,
    DPTForDepthEstimation,
    Swinv2Config,
    Swinv2Model,
)
from typer.testing import CliRunner

import hf_tokaccel as ta
from hf_tokaccel.cli import app
from hf_tokaccel.cli.tune import accel_text
from hf_tokaccel.measure.agreement import Agreement, Reading, _segments
from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.measure.metrics import panoptic
from hf_tokaccel.tuning import api
from hf_tokaccel.tuning import search as search_module
from hf_tokaccel.tuning.encoder import describe_encoder
from hf_tokaccel.tuning.images import gather_images
from hf_tokaccel.tuning.redundancy import measure_redundancy, predicted_loss
from hf_tokaccel.tuning.result import TuneResult
from hf_tokaccel.tuning.schedules import in_steps, shrink
from hf_tokaccel.tuning.search import Search
from hf_tokaccel.tuning.text import parse_accel

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
BLOB = torch.nn.functional.interpolate(
    torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)), (32, 32), mode="bilinear"
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(**TINY)).eval()


@pytest.fixture
def brief(monkeypatch):
    """A search of few settings."""
    monkeypatch.setattr(search_module, "KNOBS", {"expansion": ("delta", "soft")})
    monkeypatch.setattr(search_module, "ADAPTIVE_KNOBS", {"expansion": ("delta", "nearest")})
    monkeypatch.setattr(search_module, "KEPT_BESIDE", 1)
    monkeypatch.setattr(search_module, "STEPS", (3,))
    monkeypatch.setattr(api, "LADDER", ())
    monkeypatch.setattr(api, "BISECTIONS", 2)


@pytest.fixture(scope="module")
def tuned(model):
    return ta.tune(model, BLOB, gflops=0.7)


def test_a_budget_of_gflops_is_kept(model, tuned):
    fast = ta.accelerate(model, tuned.accel)
    ratio = count_gflops(fast, BLOB[:1]) / count_gflops(model, BLOB[:1])
    assert ratio == pytest.approx(tuned.chosen.gflops_ratio, rel=1e-6)
    assert ratio <= 0.7
    with torch.no_grad():
        pair = [m(BLOB).last_hidden_state for m in (fast, model)]
    agreed = torch.nn.functional.cosine_similarity(*pair, dim=-1).mean().item()
    assert agreed == pytest.approx(tuned.chosen.agreement, abs=1e-5)
    assert agreed < 1


def test_nothing_that_was_run_within_the_budget_is_better(tuned):
    within = [trial for trial in tuned.trials if trial.gflops_ratio <= 0.7 and trial.kind == "clusters"]
    assert len(within) > 8
    assert tuned.chosen.agreement == max(trial.agreement for trial in within)
    assert len({trial.agreement for trial in within}) > 5


def test_the_search_begins_with_the_recommended_setting(model, tuned):
    encoder = describe_encoder(model.config, 32)
    left = encoder.flops - 0.3 * tuned.dense_gflops * 1e9
    recommended = ta.recommended(model.config, 32, encoder.flops / left)
    first = ta.TokenClusteringConfig.from_dict(tuned.trials[1].accel)
    assert first == replace(recommended, clusters=first.clusters)
    # The whole method is in the closed form, but for what it rounds.
    assert first.clusters == pytest.approx(recommended.clusters, abs=0.03)
    assert any(trial.accel["reconstruct_after"] is None for trial in tuned.trials[1:])


def test_adaptive_clusters_in_one_and_in_several_steps_and_grids_are_tried(tuned):
    settings = [trial.setting for trial in tuned.trials if trial.kind == "clusters"]
    steps = {len(setting.starts) for setting in settings if setting.adaptive}
    assert min(steps) == 1 < max(steps)
    assert any(not setting.adaptive for setting in settings)
    varied = [setting for setting in settings if setting.adaptive == tuned.accel.adaptive]
    for field in ("expansion", "round_share", "size_attention") if tuned.accel.adaptive else ("expansion",):
        assert len({getattr(setting, field) for setting in varied}) > 1, field
    assert [trial.setting.iterations for trial in tuned.trials if trial.kind == "grid pooling"] == [0]


def test_shares_of_steps_keep_their_proportions_and_save_what_is_asked_for(model):
    encoder = describe_encoder(model.config, 64)
    setting = ta.TokenClusteringConfig(cluster_after=(1, 2), clusters=(0.9, 0.6))
    found = shrink(encoder, setting, 0.3 * encoder.flops)
    assert encoder.flops - encoder.accelerated(found) - encoder.matching(found) >= 0.3 * encoder.flops
    more = replace(found, clusters=tuple(share + 0.01 for share in found.clusters))
    assert encoder.flops - encoder.accelerated(more) - encoder.matching(more) < 0.3 * encoder.flops
    powers = [np.log(new) / np.log(old) for new, old in zip(found.clusters, setting.clusters, strict=True)]
    assert powers[0] == pytest.approx(powers[1], rel=0.05)  # what counts and three digits round
    assert shrink(encoder, setting, 0.9 * encoder.flops) is None
    assert in_steps((0, 12), 5, {}).cluster_after == (1, 3, 5, 7, 9)


def test_regions_lose_less_the_more_there_are_and_less_than_a_grid(model):
    batches = [{"pixel_values": BLOB}]
    regions, grids = (measure_redundancy(model, batches, (0, 4), adaptive) for adaptive in (True, False))
    assert sorted(regions) == sorted(grids) == [0, 1, 2, 3]
    for block, curve in regions.items():
        lost = [loss for _, loss in curve]
        assert lost == sorted(lost, reverse=True)
        assert 0 < lost[-1] < lost[0] < 1
        assert np.mean(lost) < np.mean([loss for _, loss in grids[block]])


def test_what_a_host_cannot_compare_is_not_tried():
    torch.manual_seed(0)
    search = Search(Swinv2Model(Swinv2Config(**TINY_SWIN)).eval(), torch.randn(1, 3, 64, 64), 1, lambda trial: None)
    _, setting = search.cheapest()
    assert setting.similarity_on == "tokens"
    assert list(search._variations(setting, "similarity_on")) == []
    assert list(search._variations(setting, "neighbors"))


def test_a_seed_gives_the_same_again(model, tuned):
    again = ta.tune(model, list(BLOB), gflops=0.7)
    assert again.accel == tuned.accel
    assert [trial.name for trial in again.trials] == [trial.name for trial in tuned.trials]


def test_pareto_front_is_one(tuned):
    front = tuned.pareto()
    assert front[0].kind == "dense"
    for dear, cheap in pairwise(front):
        assert dear.gflops_ratio > cheap.gflops_ratio
        assert dear.agreement > cheap.agreement


def test_agreement_is_kept_at_least_cost(model, brief):
    result = ta.tune(model, BLOB, agreement=0.9)
    assert result.chosen.agreement >= 0.9
    enough = [trial for trial in result.trials if trial.agreement >= 0.9 and trial.kind == "clusters"]
    assert result.chosen.gflops_ratio == min(trial.gflops_ratio for trial in enough)


def test_speed_is_what_was_measured(model, brief, monkeypatch):
    # Timing a tiny model says nothing: half of what GFLOPs promise is gained.
    def speeds(search, settings, rounds):
        return [1 + (1 / search.cost(setting) - 1) / 2 for setting in settings]

    monkeypatch.setattr(Search, "speeds", speeds)
    result = ta.tune(model, BLOB, speedup=1.3)
    assert result.chosen.speedup >= 1.3
    assert 1 / result.chosen.gflops_ratio > 1.55
    with pytest.raises(ValueError, match=r"speedup=30 cannot be met.*the best that was measured is [\d.]+ \("):
        ta.tune(model, BLOB, speedup=30)


def test_budgets_that_cannot_be_met_say_the_best_that_can(model, brief):
    with pytest.raises(ValueError, match=r"gflops=0.01 cannot be met: the least .* is (0\.\d+)") as error:
        ta.tune(model, BLOB, gflops=0.01)
    assert float(re.search(r"is (0\.\d+)", str(error.value))[1]) > 0.01
    with pytest.raises(ValueError, match=r"agreement=0.999999 cannot be met: the best .* is 0\.\d+"):
        ta.tune(model, BLOB, agreement=0.999999)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, "exactly one"),
        ({"gflops": 0.5, "speedup": 2}, "exactly one"),
        ({"gflops": 1.5}, "between 0 and 1"),
        ({"agreement": 0}, "between 0 and 1"),
        ({"speedup": 1}, "above 1"),
        ({"speedup": "2"}, "above 1"),
        ({"gflops": 0.5, "max_images": 0}, "max_images=0"),
    ],
)
def test_bad_budgets_are_refused(model, budget, said):
    with pytest.raises(ValueError, match=rf"{said}.*for example"):
        ta.tune(model, BLOB, **budget)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "images is empty"),
        ("photos", "type str"),
        ([BLOB[0], BLOB[0, :, :16]], "sizes .* resized"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], "uint8"),
        ([Image.new("RGB", (8, 8))], "needs a processor"),
        ([{"labels": 1}], "must hold pixel_values"),
    ],
)
def test_bad_images_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        gather_images(images)


def test_images_come_in_any_form_and_are_drawn_by_seed():
    loader = torch.utils.data.DataLoader(BLOB, batch_size=2)
    for form in (BLOB, list(BLOB), loader, [{"pixel_values": BLOB}], [(BLOB, "labels")]):
        assert torch.equal(gather_images(form), BLOB)
    drawn = [gather_images(BLOB, limit=2, seed=seed) for seed in (0, 0, 3)]
    assert torch.equal(drawn[0], drawn[1])
    assert len(drawn[0]) == 2


def test_models_that_cannot_be_accelerated_are_refused():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(ValueError, match="cannot be accelerated"):
        ta.tune(BertModel(config), BLOB, gflops=0.5)


# every kind of host


def hosts():
    from transformers import SamModel, SwinModel
    from transformers.models.sam.configuration_sam import SamConfig
    from transformers.models.swin.configuration_swin import SwinConfig

    dpt = {**TINY, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    yield "depth", lambda: DPTForDepthEstimation(DPTConfig(**dpt, is_hybrid=False)), 32
    yield "masks", lambda: SamModel(SamConfig(**TINY_SAM)), 32
    yield "features", lambda: SwinModel(SwinConfig(**TINY_SWIN)), 64


@pytest.mark.parametrize(
    ("kind", "build", "side"), list(hosts()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_kind_of_host_is_searched(kind, build, side):
    torch.manual_seed(0)
    native = build().eval()
    if kind == "depth":
        native.head.head[-2].weight.data.abs_()  # else it is 0 everywhere
    images = torch.nn.functional.interpolate(BLOB[:2], (side, side), mode="bilinear")
    search = Search(native, images, 2, lambda trial: None)
    assert search.kind == kind
    start, end = search.span
    assert sorted(search.redundancy) == list(range(start, end))
    losses = [lost for curve in search.redundancy.values() for _, lost in curve]
    assert 0 < min(losses) < max(losses)
    least = search.cheapest()[0]
    assert search.adaptive == (kind == "depth")
    best = search.best_schedule((1 + least) / 2)
    assert least <= best.gflops_ratio <= (1 + least) / 2
    assert best.agreement < 1
    # The largest grid that the budget allows, so the next one is beyond it.
    for trial in [trial for trial in search.trials.values() if not trial.setting.adaptive]:
        grids = search.encoder.grids(trial.setting.cluster_after)
        larger = [grid for grid in grids if grid > trial.setting.cluster_grid]
        if larger:
            bigger = {**trial.accel, "cluster_grid": list(larger[0])}
            assert search.cost(ta.TokenClusteringConfig.from_dict(bigger)) > (1 + least) / 2


# agreement


def score(kind, value, dense, num_classes=0):
    total = Agreement()
    total.add(Reading(kind, value, num_classes), Reading(kind, dense, num_classes))
    return total.value


def test_agreement_of_depth_and_classes_and_masks():
    depth = torch.full((2, 4, 4), 2.0)
    assert score("depth", depth * 1.1, depth) == pytest.approx(0.9)
    classes = torch.zeros(1, 4, 4, dtype=torch.long)
    classes[:, 2:] = 1
    moved = classes.clone()
    moved[:, 1] = 1
    assert score("classes", moved, classes, 3) == pytest.approx((4 / 8 + 8 / 12) / 2)
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    masks[:, 0, :2] = True
    other = masks.clone()
    other[:, 0, 1] = False
    assert score("masks", other, masks) == pytest.approx((0.5 + 1) / 2)
    for kind, value in (("depth", depth), ("classes", classes), ("masks", masks)):
        assert score(kind, value, value, 3) == 1


def test_segments_are_queries_with_a_class():
    classes = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]])  # the last query is nothing
    masks = torch.full((1, 3, 2, 4), -9.0)
    masks[0, 0, :, :1] = masks[0, 1, :, 2:] = masks[0, 2, :, 1] = 9.0
    (segments,) = _segments(classes, masks)
    first, second = panoptic.code(0, 1), panoptic.code(1, 2)
    assert segments.tolist() == [[first, panoptic.VOID, second, second]] * 2
    maps = segments[None]
    assert score("segments", maps, maps, 2) == 1
    lost = torch.where(maps == first, panoptic.VOID, maps)
    assert score("segments", lost, maps, 2) == pytest.approx(0.5)


def test_depth_of_zero_is_refused():
    with pytest.raises(ValueError, match="0 everywhere"):
        score("depth", torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))


def test_loss_between_measurements_is_linear():
    curve = [(0.25, 0.4), (0.5, 0.2)]
    assert predicted_loss(curve, 0.375) == pytest.approx(0.3)
    assert predicted_loss(curve, 0.75) == pytest.approx(0.1)
    assert predicted_loss(curve, 1.0) == 0


# what comes out


def test_result_is_saved_printed_and_drawn(tuned, tmp_path):
    tuned.save(tmp_path / "tuned.json")
    stored = json.loads((tmp_path / "tuned.json").read_text())
    assert TuneResult.load(tmp_path / "tuned.json").to_dict() == tuned.to_dict()
    assert ta.TokenClusteringConfig.from_dict(stored["accel"]) == tuned.accel
    assert len(stored["pareto"]) == len(tuned.pareto())
    lines = tuned.to_markdown().splitlines()
    assert sum(line.startswith("| * ") for line in lines) == 1
    assert tuned.to_table().row_count == len(tuned.pareto())
    tuned.plot(tmp_path / "pareto.png")
    pixels = np.asarray(Image.open(tmp_path / "pareto.png").convert("RGB"))
    assert pixels.std() > 5


def test_command_says_mistakes_in_a_line(tmp_path):
    runner = CliRunner()
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (["--gflops", "0.5", "--images", str(tmp_path / "none")], "is not a folder"),
        (["--gflops", "0.5", "--images", str(tmp_path / "empty")], "holds no image file"),
        (["--gflops", "0.5", "--out", "tuned.txt"], "must end in .json"),
        (["--gflops", "0.5", "--plot", "plot.gif"], "must end in .png"),
        (["--gflops", "0.5", "--speedup", "2"], "exactly one of --speedup"),
        ([], "exactly one of --speedup"),
    ):
        result = runner.invoke(app, ["tune", "depth", *arguments])
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())


def test_command_tunes_a_folder_of_images(model, brief, tmp_path):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(BLOB):
        pixels = ((image.clamp(-1, 1) + 1) * 127).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    out = tmp_path / "tuned.json"
    arguments = ["tune", str(tmp_path / "model"), "--images", str(tmp_path / "photos"), "--gflops", "0.7"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--plot", str(tmp_path / "p.png"), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads(out.read_text())
    assert printed["num_images"] == 4
    assert printed["chosen"]["gflops_ratio"] <= 0.7
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"cluster_after": 4, "cluster_grid": (12, 16), "expansion": "delta"}, "cluster_grid=12x16,expansion=delta"),
        ({"cluster_after": 4, "clusters": 0.5, "round_share": 0.5}, "clusters=0.5,round_share=0.5"),
        (
            {"cluster_after": (1, 3), "clusters": (0.85, 90), "size_attention": False},
            "clusters=0.85/90,size_attention=false",
        ),
    ],
)
def test_a_setting_as_text_is_read_back(setting, text):
    setting = ta.TokenClusteringConfig(**setting)
    assert text in accel_text(setting)
    assert parse_accel(accel_text(setting)) == setting
