"""The published GFLOPs follow from the closed forms, and nothing else does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import hf_tokaccel as ta
from benchmarks.paper_gflops import TABLES, __main__, mask2former, report
from benchmarks.paper_gflops.stvit_terms import VIT_WIDTHS
from benchmarks.paper_gflops.table import Checked, flops
from hf_tokaccel.measure.flops import count_gflops
from hf_tokaccel.models.vit import TokAccelViTForImageClassification

DOCUMENT = Path(__file__).parents[2] / "docs" / "paper_gflops.md"
LOADED = {name: __main__.load(name) for name in TABLES}
SEMANTIC = LOADED["stvit"]
# Values that are printed with few digits have tests of their own.
ROWS = [(table, row) for table in LOADED.values() for row in table.rows if table is not SEMANTIC]


def named(rows):
    return pytest.mark.parametrize(("table", "row"), rows, ids=[f"{row.name}-{row.published}" for _, row in rows])


def test_every_published_row_is_there():
    rows = {name: len(table.rows) for name, table in LOADED.items()}
    assert rows == {"segmenter": 12, "dpt": 8, "swag": 8, "mask2former": 9, "stvit": 48}


@named(ROWS)
def test_closed_form_gives_the_published_value(table, row):
    assert table.total(table.terms(row)) == pytest.approx(row.published, rel=1e-3)


@named([(table, row) for table, row in ROWS if row.accel])
@pytest.mark.parametrize(("blocks", "side"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_a_neighbouring_setting_does_not(table, row, blocks, side):
    """Among them: alpha taken for another table's, off by one."""
    height, width = row.accel["cluster_grid"]
    accel = {"cluster_after": row.accel["cluster_after"] + blocks, "cluster_grid": (height + side, width + side)}
    assert not Checked(row, table.total(table.terms(replace(row, accel=accel)))).fits


@pytest.mark.parametrize(("row", "traced"), [(0, 210.834), (4, 151.316)], ids=["KITTI", "NYUv2"])
def test_what_surrounds_the_blocks_of_dpt_is_what_a_trace_of_the_official_model_holds(row, traced):
    terms = LOADED["dpt"].terms(LOADED["dpt"].rows[row])
    blocks = sum(value for name, value in terms.items() if "block" in name or name.startswith("attention"))
    assert (sum(terms.values()) - blocks) / 1e9 == pytest.approx(traced, abs=1e-3)


def test_command_fails_on_a_row_that_is_off(monkeypatch, capsys):
    monkeypatch.setattr(report, "flops", lambda build, size: 1.0)
    assert __main__.main(["swag"]) == 0
    good = LOADED["swag"]
    row = good.rows[-1]
    doctored = replace(good, rows=(*good.rows[:-1], replace(row, published=row.published * 1.002)))
    monkeypatch.setattr(__main__, "load", lambda name: doctored)
    assert __main__.main(["swag"]) == 1
    assert "more than 0.1% off: swag: Row(name='ViT-H/14'" in capsys.readouterr().err


def test_document_is_what_the_command_prints():
    """Of every line what needs no model."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("|") and ("%" in line)
    ]
    known = [line for table in LOADED.values() for line in report.known_lines(table)]
    assert [line[: len(cells)] for line, cells in zip(lines, known, strict=True)] == known


def test_counting_without_data_counts_what_runs():
    config = ViTConfig(
        image_size=64,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
    )
    accelerated = ta.accelerate_config(config, {"cluster_after": 1, "cluster_grid": 8})
    torch.manual_seed(0)
    model = ta.accelerate(ViTForImageClassification(config).eval(), accelerated.accel)
    without_data = flops(lambda: TokAccelViTForImageClassification(accelerated), (64, 64))
    assert without_data == count_gflops(model, torch.rand(1, 3, 64, 64))


@named([(table, row) for table, row in ROWS if table is LOADED["swag"]])
def test_our_model_runs_the_blocks_of_the_row_and_clusters_for_less(table, row):
    """All eight settings of SWAG, at full size: the matrix products are the table's, but for a cheaper clustering."""
    terms = table.terms(row)
    products = ("patch embedding", "linear layers of the blocks", "attention products", "classifier")
    blocks = sum(terms[name] for name in products)
    dense = terms.get("clustering: distances to all clusters and dense weighted means", 0)
    ours = flops(lambda: table.model(row), row.size) * 1e9 / 2
    if row.accel is None:
        assert ours == blocks
    else:
        assert blocks < ours < blocks + dense / 2


@pytest.mark.parametrize(("name", "cost"), [("COCO panoptic", 684.00), ("COCO instance", 726.65)])
def test_two_released_configurations_of_mask2former_are_not_those_of_the_table(name, cost):
    row = mask2former.shipped(name)
    assert row.accel["cluster_after"] == row.alpha
    line = Checked(row, mask2former.TABLE.total(mask2former.terms(row)))
    assert line.computed == pytest.approx(cost, abs=0.01)
    assert not line.fits


@named([(LOADED["mask2former"], row) for row in LOADED["mask2former"].rows[5:]])
def test_our_swin_runs_the_blocks_of_the_row_and_clusters_for_less(table, row):
    """The clips, where windows are padded; the images have the same terms without padding."""
    terms = table.terms(row)
    products = ("patch embedding", "linear layers of the blocks", "attention products", "patch merging")
    blocks = sum(terms[name] for name in products)
    ours = row.images * flops(lambda: table.model(row), row.size) * 1e9 / 2
    if row.accel is None:
        assert ours == blocks
    else:
        dense = sum(value for name, value in terms.items() if "clustering" in name or "reconstruction" in name)
        assert blocks < ours < blocks + dense


def semantic(name, **accel):
    """The row of this name with these values in its setting."""
    (row,) = (row for row in SEMANTIC.rows if row.name == name and accel.items() <= (row.accel or {}).items())
    return row


def billions(row):
    return SEMANTIC.total(SEMANTIC.terms(row))


SEMANTIC_ROWS = pytest.mark.parametrize(
    "line", SEMANTIC.check(), ids=lambda line: f"{line.row.name}-{line.computed:.3f}"
)


@SEMANTIC_ROWS
def test_closed_form_gives_the_digits_printed_for_semantic_tokens(line):
    assert line.fits
    assert bool(line.row.source) == (line.row.published is not None or line.row.saved is not None)


PRINTED = [line for line in SEMANTIC.check() if line.row.accel and "base_layers" in line.row.accel and line.row.source]


NEIGHBOURS = [
    pytest.param(line, layers, side, id=f"{line.row.name}-{line.computed:.3f}-{layers}-{side}")
    for line in PRINTED
    for layers, side in ((1, 0), (-1, 0), (0, 1), (0, -1))
    if line.row.accel["base_layers"] + layers > 0
]


@pytest.mark.parametrize(("line", "layers", "side"), NEIGHBOURS)
def test_a_neighbouring_setting_of_semantic_tokens_does_not(line, layers, side):
    accel = dict(line.row.accel)
    accel["base_layers"] += layers
    accel["token_grid"] = tuple(length + side for length in accel["token_grid"])
    row = replace(line.row, accel=accel)
    assert not Checked(row, billions(row), line.base).fits


@pytest.mark.parametrize(
    ("computed", "fits"), [(1.899, False), (1.906, True), (1.914, True), (1.9199, True), (1.921, False)]
)
def test_a_value_with_few_digits_fits_what_is_rounded_or_cut_off_to_it(computed, fits):
    row = replace(semantic("STViT-DeiT-B"), published=1.91, saved=None)
    assert Checked(row, computed).fits == fits


@pytest.mark.parametrize(("computed", "fits"), [(4.21, False), (4.19, True), (4.11, True), (4.09, False)])
def test_a_saving_fits_what_is_cut_off_to_it(computed, fits):
    """58 % of 10."""
    row = replace(semantic("STViT-DeiT-B"), saved=58)
    assert Checked(row, computed, base=10.0).fits == fits


@pytest.mark.parametrize(("side", "cost"), [(2, 1.74), (3, 1.81), (4, 1.91), (5, 2.04), (6, 2.20), (7, 2.39)])
def test_cost_of_more_semantic_tokens_in_deit(side, cost):
    row = semantic("STViT-DeiT-S", token_grid=(side, side), base_layers=4, generation_layers=2)
    assert round(billions(row), 2) == cost


@pytest.mark.parametrize(("model", "dearer", "cheaper"), [("S", 0.27, 0.314), ("B", 0.26, 0.328)])
def test_released_backbone_for_detection_is_dearer_than_swin_and_ours_is_not(model, dearer, cheaper):
    base, released, ours = (billions(row) for row in SEMANTIC.rows if row.dense and row.model == model)
    assert round(released / base - 1, 2) == dearer
    assert round(1 - ours / base, 3) == cheaper


@pytest.mark.parametrize(
    "row",
    [
        semantic("DeiT-T"),
        semantic("STViT-DeiT-S", generation_layers=3),
        semantic("STViT-DeiT-S", token_grid=(5, 5)),
        semantic("STViT-Swin-T A", token_grid=(3, 3)),
        semantic("STViT-R-Swin-T, once per token"),
        next(row for row in SEMANTIC.rows if row.name == "STViT-R-Swin-S, once per token" and row.dense),
    ],
    ids=lambda row: f"{row.name}-{row.size[0]}",
)
def test_our_semantic_tokens_multiply_what_the_closed_form_says(row):
    """To the digit; the learned pooling of DeiT, whose windows are padded, is not in the closed form."""
    products = sum(value for name, value in SEMANTIC.terms(row).items() if "Norm" not in name)
    pooling = 0
    if row.accel and "DeiT" in row.name:
        side = row.accel["token_grid"][0]
        pooling = (9 + 1 + 1) * (-(-14 // side) * side) ** 2 * VIT_WIDTHS[row.model]
    assert round(flops(lambda: SEMANTIC.model(row), row.size) * 1e9 / 2) == products + pooling


@pytest.mark.parametrize("name", ["segmenter", "dpt", "mask2former"])
def test_our_model_saves_no_less_than_published(name):
    table = LOADED[name]
    dense, row = table.rows[:2]
    ours, whole = (flops(lambda row=row: table.model(row), row.size) for row in (row, dense))
    assert 0.5 < ours / whole < row.published / dense.published
