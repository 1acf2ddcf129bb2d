"""Settings by name and by budget: the papers' rows, recommended ones, and both on the command line."""

import json
import re
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    CLIPConfig,
    Deimv2Config,
    Dinov2Config,
    DINOv3ViTConfig,
    DPTConfig,
    DPTForDepthEstimation,
    EomtConfig,
    Mask2FormerConfig,
    SamConfig,
    SamVisionConfig,
    SwinConfig,
    Swinv2Config,
    UperNetConfig,
    ViTConfig,
    ViTModel,
)
from typer.testing import CliRunner

import hf_tokaccel as ta
from benchmarks.paper_gflops import dpt, mask2former, segmenter, swag
from hf_tokaccel.cli import app
from hf_tokaccel.images import default_size
from hf_tokaccel.measure.flops import gflops_of_shape
from hf_tokaccel.models.segmenter import SegmenterConfig
from hf_tokaccel.settings.methods import as_accel
from hf_tokaccel.tuning import recommended as recipes
from hf_tokaccel.tuning.encoder import describe_encoder
from hf_tokaccel.tuning.recommended import Recommended
from hf_tokaccel.tuning.released import RELEASED, released_table
from hf_tokaccel.tuning.text import parse_accel, parse_accels, resolve_accels
from hf_tokaccel.tuning.whole import whole_flops
from model_cards.settings import CARDS

Setting = ta.TokenClusteringConfig
DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
SAM = SamVisionConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16)
SWINV2 = Swinv2Config(image_size=256, window_size=8)
SEGMENTER = SegmenterConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3)

# Iterations, window, neighbors and inverse temperature of the released configurations, written out once more.
OTHERS = {
    "segmenter": (5, 5, 20, 0.02),
    "dpt": (5, 5, 20, 1.0),
    "swag": (5, 5, 20, 1.0),
    "sam": (5, 5, 20, 0.005),
    "mask2former-coco-panoptic": (5, 7, 10, 0.05),
    "mask2former-coco-instance": (5, 11, 60, 0.01),
    "mask2former-ade20k-panoptic": (4, 7, 49, 0.01),
    "mask2former-ade20k-semantic": (5, 5, 10, 0.01),
    "mask2former-youtubevis-2019": (4, 7, 49, 0.01),
    "mask2former-youtubevis-2021": (5, 7, 49, 0.01),
}
# What the families run of them: expansion, normalization, decode_clusters, mask_shift.
RESOLVED = {
    "segmenter": ("soft", "l2", True, None),
    "dpt": ("nearest", "l1", None, None),
    "swag": ("soft", "l2", None, None),
    "sam": ("soft", "l2", None, None),
    "mask2former": ("soft", "l2", None, "released"),
}


def real_config(row):
    """The model of a row, at its real size."""
    if row.name.startswith("segmenter"):
        return next(segmenter.config(other) for other in segmenter.TABLE.rows if other.size == row.image_size)
    if row.name.startswith("swag"):
        return swag.config(row.model.removeprefix("SWAG "))
    if row.name.startswith("dpt"):
        return dpt.config()
    return SamConfig(vision_config=SAM.to_dict()) if row.name.startswith("sam") else mask2former.config()


# Released


def test_every_row_of_the_papers_is_there():
    rows = [name.split("-")[0] for name in RELEASED]
    # Of two rows of Mask2Former the released configuration is another one.
    assert {name: rows.count(name) for name in rows} == {
        "segmenter": 9,
        "dpt": 6,
        "mask2former": 8,
        "sam": 5,
        "swag": 6,
    }
    tables = (segmenter.TABLE, dpt.TABLE, mask2former.TABLE, swag.TABLE)
    used = {row.preset for row in chain.from_iterable(table.rows for table in tables) if row.accel}
    used |= set(mask2former.SHIPPED.values())
    assert used == {name for name in RELEASED if not name.startswith("sam")}


@pytest.mark.parametrize("row", RELEASED.values(), ids=lambda row: row.name)
def test_a_row_is_as_released_and_fits_its_model(row):
    setting = ta.released(row.name)
    (height, width), after = setting.cluster_grid, setting.cluster_after
    assert row.name.endswith(f"-{height}x{width}-after-{after}")
    others = (setting.iterations, setting.window, setting.neighbors, setting.inverse_temperature)
    assert others == next(values for name, values in OTHERS.items() if row.name.startswith(name))
    config = ta.accelerate_config(real_config(row), setting, row.image_size)
    run = Setting.from_dict(config.accel)
    expected = RESOLVED[row.name.split("-")[0]]
    assert (run.expansion, run.normalization, run.decode_clusters, run.mask_shift) == expected
    assert (run.similarity_on, run.neighbor_window, run.shared_frames) == ("tokens", None, 1)


def test_alpha_means_what_each_paper_means():
    off = {name: row.accel["cluster_after"] - row.alpha for name, row in RELEASED.items()}
    assert {off[name] for name in off if name.startswith(("segmenter", "swag", "sam"))} == {0}
    assert {off[name] for name in off if name.startswith("dpt")} == {1}
    for table, after in (("coco-panoptic", 9), ("coco-instance", 11), ("ade20k-semantic", 7)):
        assert off[f"mask2former-{table}-8x8-after-{after}"] == -1


def test_cards_say_presets():
    named = {card.name: card for card in CARDS}
    sam = ta.released("sam-9x9-after-6")
    assert Setting(**named["sam-vit-huge-tokaccel"].accel) == sam
    assert named["segmenter-vit-large-ade20k-tokaccel"].accel == RELEASED["segmenter-ade20k-28x28-after-10"].accel
    assert len({id(card.accel) for card in CARDS} & {id(row.accel) for row in RELEASED.values()}) == len(CARDS) - 2


def test_overrides_change_fields():
    changed = ta.released("dpt-kitti-20x20-after-5", expansion="delta", cluster_grid=(18, 22))
    assert changed == replace(ta.released("dpt-kitti-20x20-after-5"), expansion="delta", cluster_grid=(18, 22))
    with pytest.raises(ValueError, match=r"unknown fields \['neighbours'\].*for example neighbors=10"):
        ta.released("dpt-kitti-20x20-after-5", neighbours=4)
    with pytest.raises(ValueError, match=r"window=4 .*window=5"):
        ta.released("dpt-kitti-20x20-after-5", window=4)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("segmenter-ade20k", "segmenter-ade20k-28x28-after-16, segmenter-ade20k-28x28-after-10"),
        ("SAM-9x9", "sam-9x9-after-8, sam-9x9-after-6"),
        ("dpt-nyu-16x16-after-5", "dpt-nyuv2-16x16-after-5"),
    ],
)
def test_unknown_names_are_refused_with_those_like_them(name, near):
    with pytest.raises(ValueError, match=rf"preset '{name}' is not known \(near it: {near}.*for example"):
        ta.released(name)
    with pytest.raises(ValueError, match="must be one of") as error:
        ta.released("nothing like it")
    assert all(known in str(error.value) for known in RELEASED)


def test_docs_show_the_table():
    assert released_table() in DOCUMENT.read_text(), "paste what `hf_tokaccel presets --markdown` prints"


def test_docs_say_the_recipe():
    text = " ".join(DOCUMENT.read_text().split())
    for name, value in recipes.RECIPE.fields.items():
        assert f'`{name}="{value}"`' in text
    assert recipes.RECIPE.last_blocks == 0
    assert "clusters to the end of their span" in text


# Recommended


# A field that only a grid has chooses one.
GRID = {"iterations": 5}


@pytest.fixture
def blocks_only(monkeypatch):
    """Ratios of the blocks alone, which is quick: as of a model that needs more than images."""
    monkeypatch.setattr(recipes, "whole_flops", lambda *args: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (ViTConfig(), 384),
        (Dinov2Config(), (518, 392)),
        (SegmenterConfig(), 512),
        (SwinConfig(depths=[2, 2, 18, 2]), 384),
        (SWINV2, 256),
        (SAM, 1024),
        (EomtConfig(), 640),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
@pytest.mark.parametrize("speedup", [1.15, 1.5])
@pytest.mark.parametrize("last", [0, 1])
def test_a_grid_reaches_the_ratio_with_last_blocks_at_full_resolution_too(blocks_only, config, size, speedup, last):
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, last_blocks=last))
    setting, encoder = ta.recommended(config, size, speedup, **GRID), describe_encoder(config, size)
    after, grid, until = setting.cluster_after, setting.cluster_grid, setting.reconstruct_after
    _, end = encoder.longest()
    assert until == (end - 1 if last else None)
    assert encoder.flops / encoder.clustered(after, grid, until) >= speedup
    # Counted as if clusters went on to the end it would be faster than that.
    assert (encoder.clustered(after, grid, until) > encoder.clustered(after, grid)) is bool(last)
    larger = encoder.grids(after)[encoder.grids(after).index(grid) + 1 :]
    assert all(encoder.flops / encoder.clustered(after, g, until) < speedup for g in larger)
    assert setting.expansion == "delta"
    assert setting.similarity_on == ("tokens" if config is SWINV2 else "normalized")
    assert ta.accelerate_config(config, setting, size).accel["normalization"] == "l1"


@pytest.mark.parametrize("speedup", [1.2, 1.6, 2.2])
@pytest.mark.parametrize(
    "config", [ViTConfig(), Dinov2Config(image_size=224), EomtConfig()], ids=lambda c: c.model_type
)
def test_adaptive_clusters_reach_the_ratio(blocks_only, config, speedup):
    setting, encoder = ta.recommended(config, 224, speedup), describe_encoder(config, 224)
    assert setting.adaptive
    assert encoder.flops / (encoder.accelerated(setting) + encoder.matching(setting)) >= speedup
    steps = recipes.ADAPTIVE.bold_steps if speedup >= recipes.ADAPTIVE.bold else recipes.ADAPTIVE.steps
    assert len(setting.starts) == len(steps)
    assert list(setting.starts) == sorted(set(setting.starts))
    ratios = [b / a for a, b in pairwise((1.0, *setting.clusters))]
    assert max(ratios) - min(ratios) < 0.01
    more = tuple(min(1.0, 1.02 * share) for share in setting.clusters)
    larger = replace(setting, clusters=more)
    assert encoder.flops / (encoder.accelerated(larger) + encoder.matching(larger)) < speedup


def test_the_ratio_is_that_of_the_whole_model():
    """Head included, by the class of the model or the configuration's architectures, at the configuration's size."""
    config = DPTConfig(
        is_hybrid=False, image_size=192, hidden_size=192, num_hidden_layers=12, num_attention_heads=3,
        intermediate_size=768, backbone_out_indices=[2, 5, 8, 11], neck_hidden_sizes=[24, 48, 96, 192],
        fusion_hidden_size=32,
    )  # fmt: skip
    with torch.device("meta"):
        model = DPTForDepthEstimation(config).eval()
    dense = gflops_of_shape(model, (192, 192))
    # A grid of so few tokens has few sizes.
    for fields, most in (({}, 1.32), (GRID, 1.4)):
        fast = gflops_of_shape(ta.accelerate(model, ta.recommended(model, speedup=1.3, **fields)), (192, 192))
        assert 1.29 < dense / fast < most
    config.architectures = ["DPTForDepthEstimation"]
    assert ta.recommended(config, speedup=1.3) == ta.recommended(model, 192, 1.3)
    encoder = describe_encoder(config, 192)
    most = 1e9 * dense / (1e9 * dense - encoder.flops)
    with pytest.raises(ValueError, match=r"cannot be reached.*the FLOPs of the model allow is (\d\.\d+)") as error:
        ta.recommended(model, speedup=9)
    assert float(re.search(r"is (\d+\.\d+)", str(error.value))[1]) <= most


def test_models_that_read_texts_too_count_their_vision_blocks():
    assert whole_flops(CLIPConfig(), (224, 224)) is None
    assert ta.recommended(CLIPConfig(), 224, 1.5).adaptive


def test_many_tokens_are_matched_in_tiles(blocks_only):
    assert ta.recommended(ViTConfig(), 512, 1.5).tile is None
    assert ta.recommended(ViTConfig(), 1536, 1.5).tile == recipes.ADAPTIVE.tile


def test_accelerate_takes_a_speed_or_a_name():
    config = ViTConfig(image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=4, num_attention_heads=2)
    model = ViTModel(config).eval()
    fast = ta.accelerate(model, speedup=1.3)
    assert fast.config.accel == ta.accelerate(model, "recommended:1.3").config.accel
    assert fast.config.accel == ta.accelerate_config(config, speedup=1.3).accel
    assert as_accel(fast.config.accel).starts == ta.recommended(model, speedup=1.3).starts
    with torch.no_grad():
        assert fast(torch.randn(1, 3, 32, 32)).last_hidden_state.shape == (1, 65, 32)
    for arguments in ({}, {"accel": None, "speedup": 1.5}):
        with pytest.raises(ValueError, match=r"give one of them, for example accelerate\(model, speedup=1.5\)"):
            ta.accelerate(model, **arguments)
    with pytest.raises(ValueError, match=r"speedup=0\.5 .*above 1"):
        ta.accelerate(model, speedup=0.5)


def test_every_family_accepts_what_is_recommended_for_it(blocks_only):
    refused = {}
    for name, family in ta.FAMILIES.items():
        config = family.native_config()
        try:
            size = default_size(config, None)
        except ValueError:  # says none
            size = (384, 384)
        try:
            setting = ta.recommended(config, size)
        except ValueError as error:
            refused[name] = str(error)
            continue
        assert setting.expansion == "delta"
        assert setting.reconstruct_after is None
    # Their default backbones are none that can be accelerated.
    assert set(refused) == {"deimv2", "rf_detr", "upernet"}
    # Its own default size does not divide into its own windows.
    assert "multiples of the patch size" in refused.pop("rf_detr")
    assert ta.recommended(ta.FAMILIES["rf_detr"].native_config(), 560).reconstruct_after is None
    assert all("cannot be accelerated" in said for said in refused.values())
    assert ta.recommended(UperNetConfig(backbone_config=SwinConfig(out_indices=[4])), 384)
    assert ta.recommended(Deimv2Config(backbone_config=DINOv3ViTConfig(out_indices=[5, 8, 11])), 640)


def test_hosts_for_which_parts_make_no_sense(blocks_only):
    segmenter = ta.accelerate_config(SEGMENTER, ta.recommended(SEGMENTER, 512)).accel
    assert segmenter["decode_clusters"] is False
    assert ta.recommended(SEGMENTER, 512, 1.7, **GRID).decode_clusters is True
    assert ta.recommended(SEGMENTER, 512, 1.7, decode_clusters=False, **GRID).decode_clusters is False
    assert ta.recommended(SEGMENTER, 512, 1.7, reconstruct_after=8, **GRID).decode_clusters is None
    on_clusters = ta.recommended(SEGMENTER, 512, decode_clusters=True, **GRID)
    assert (on_clusters.expansion, on_clusters.reconstruct_after) == ("delta", None)
    assert ta.accelerate_config(SEGMENTER, on_clusters).accel["decode_clusters"] is True
    assert ta.recommended(Mask2FormerConfig(backbone_config=SWINV2), 256).similarity_on == "tokens"
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, last_blocks=1))
    classifier = ViTConfig(architectures=["ViTForImageClassification"])
    assert ta.recommended(classifier, 384, **GRID).reconstruct_after is None
    assert ta.recommended(ViTConfig(architectures=["ViTModel"]), 384, **GRID).reconstruct_after == 11
    # The queries join the last 4 of 24 blocks.
    assert ta.recommended(EomtConfig(), 640, **GRID).reconstruct_after == 19


def test_fewer_blocks_are_left_at_full_resolution_where_the_ratio_asks_for_it(blocks_only):
    config = ViTConfig(num_hidden_layers=3, hidden_size=192, num_attention_heads=3)
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, last_blocks=1))
    mild, bold = (ta.recommended(config, 384, speedup, **GRID) for speedup in (1.69, 1.7))
    assert (mild.reconstruct_after, bold.reconstruct_after) == (2, None)
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, last_blocks=2, bold=9))
    found = [ta.recommended(config, 384, speedup, **GRID).reconstruct_after for speedup in (1.2, 2, 4)]
    assert found == [1, 2, None]


def test_the_recipe_is_one_table(blocks_only):
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, last_blocks=1))
    plain = ta.recommended(ViTConfig(), 384, **GRID)
    fields = {"expansion": "soft", "neighbors": 7}
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, fields=fields, last_blocks=3))
    changed = ta.recommended(ViTConfig(), 384, **GRID)
    assert (changed.expansion, changed.neighbors, changed.similarity_on) == ("soft", 7, "tokens")
    assert (plain.reconstruct_after, changed.reconstruct_after) == (11, 9)
    blocks_only.setattr(recipes, "RECIPE", replace(recipes.RECIPE, last_blocks=1, share=(0.0, 0.0)))
    fewest = ta.recommended(ViTConfig(), 384, **GRID)
    assert fewest.cluster_after > plain.cluster_after
    assert fewest.cluster_grid < plain.cluster_grid


def test_overrides_of_a_recommended_setting(blocks_only):
    free = ta.recommended(ViTConfig(), 384, 1.5, neighbors=4, reconstruct_after=None)
    assert (free.neighbors, free.reconstruct_after) == (4, None)
    early = ta.recommended(ViTConfig(), 384, 1.5, reconstruct_after=8, **GRID)
    encoder = describe_encoder(ViTConfig(), 384)
    assert ta.recommended(ViTConfig(), 384) == ta.recommended(ViTConfig(), 384, recipes.SPEEDUP)
    assert ta.recommended(ViTConfig(), 384, 1.5, reconstruct_after=10).reconstruct_after == 10
    assert early.reconstruct_after == 8
    assert encoder.flops / encoder.clustered(early.cluster_after, early.cluster_grid, 8) >= 1.5
    assert early.cluster_grid < free.cluster_grid or early.cluster_after < free.cluster_after


def test_a_budget_that_cannot_be_met_says_the_best_that_can(blocks_only):
    with pytest.raises(ValueError, match=r"speedup=40 cannot be reached.*the best .* is (\d+\.\d+)") as error:
        ta.recommended(SWINV2, 256, 40)
    best = float(re.search(r"is (\d+\.\d+)", str(error.value))[1])
    at_best = ta.recommended(SWINV2, 256, best)
    assert (at_best.cluster_grid, at_best.reconstruct_after) == ((1, 1), None)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (ViTConfig(), {"speedup": 1}, r"speedup=1 .*above 1, for example"),
        (ViTConfig(), {"speedup": "fast"}, r"speedup='fast' .*above 1, for example"),
        (ViTConfig(), {"cluster_after": 2}, r"cluster_after.*cannot be given to recommended.*leave them out"),
        (ViTConfig(), {"neighbours": 2}, r"unknown fields \['neighbours'\]"),
        (ViTConfig(), {"mask_shift": "released"}, r"mask_shift='released' .*only Swin"),
        (ViTConfig(), {"reconstruct_after": 13}, r"reconstruct_after=13 .*for example"),
        (SWINV2, {"similarity_on": "normalized"}, r"similarity_on='normalized' .*Swin V2"),
        (
            SEGMENTER,
            {"decode_clusters": True, "reconstruct_after": 8},
            r"decode_clusters=True .*decode_clusters=False",
        ),
        (BertConfig(), {}, "cannot be accelerated"),
    ],
)
def test_bad_input_is_refused(blocks_only, config, arguments, message):
    with pytest.raises(ValueError, match=message):
        ta.recommended(config, 256, **arguments)


# By name on the command line


def test_presets_are_read_where_settings_are(blocks_only):
    several = parse_accel("cluster_after=1/3/5,clusters=0.8/0.6/0.4")
    assert (several.cluster_after, several.clusters) == ((1, 3, 5), (0.8, 0.6, 0.4))
    assert parse_accel("released:sam-9x9-after-6") == ta.released("sam-9x9-after-6")
    assert parse_accel(" released:sam-9x9-after-6,window=7") == ta.released("sam-9x9-after-6", window=7)
    assert parse_accels(["recommended", "recommended:2,neighbors=4"]) == [
        Recommended(1.5),
        Recommended(2.0, {"neighbors": 4}),
    ]
    plain = Setting(cluster_after=3, cluster_grid=12)
    resolved = resolve_accels([plain, Recommended(2.0, {"neighbors": 4})], ViTConfig(), (384, 384))
    assert resolved == [plain, ta.recommended(ViTConfig(), 384, 2, neighbors=4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("released", "preset '' is not known.*must be one of segmenter-ade20k"),
        ("released:dpt", "near it: dpt-kitti"),
        ("released:sam-9x9-after-6,windows=7", "unknown fields"),
        ("recommended:", "must be a number above 1, for example recommended:1.5"),
        ("recommended:fast", "recommended:fast .*for example recommended:1.5"),
        ("recommended:0.5", "speedup=0.5 .*above 1"),
        ("recommended,cluster_after=2", "leave them out"),
        ("recommended:1.5,neighbors", "'neighbors' where one key=value"),
        ("recommendet:1.5", "'recommendet:1.5' where one key=value"),
    ],
)
def test_presets_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse_accel(text)


def test_semantic_tokens_have_no_presets():
    with pytest.raises(ValueError, match="where one key=value"):
        parse_accel("recommended:1.5", ta.SemanticTokenConfig, "token_grid=4x4,base_layers=4")


def test_the_command_lists_them():
    def run(*arguments):
        return CliRunner().invoke(app, ["presets", *arguments])

    listed = json.loads(run("--json").stdout)
    assert [entry["name"] for entry in listed] == list(RELEASED)
    assert Setting.from_dict(listed[0]["accel"]) == ta.released(listed[0]["name"])
    assert run("--markdown").stdout.strip() == released_table()
    assert "8 presets" in run("mask2former").stdout
    done = run("resnet")
    assert done.exit_code == 2
    assert "no preset holds 'resnet'" in " ".join(done.stderr.split())
