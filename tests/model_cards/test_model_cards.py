"""The ready cards: metadata, settings against configurations of the real sizes, and commands. Nothing is loaded."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import (
    DepthAnythingConfig,
    Dinov2Config,
    DPTConfig,
    Mask2FormerConfig,
    PreTrainedModel,
    SamConfig,
    SamVisionConfig,
    SwinConfig,
)
from typer.main import get_command

import hf_tokaccel as ta
from hf_tokaccel.cli import app
from hf_tokaccel.cli.accelerate import read_setting
from hf_tokaccel.models.segmenter import SegmenterConfig
from hf_tokaccel.tuning.text import parse_accels
from model_cards.build import FOLDER, card_text
from model_cards.settings import CARDS

VIT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
SWIN = SwinConfig(depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], embed_dim=192, window_size=12, image_size=384)
DINOV2 = Dinov2Config(**VIT_LARGE, patch_size=14, image_size=518, out_indices=[5, 12, 18, 24])
SAM = SamVisionConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16)


def real_config(card):
    if card.base.startswith("Intel/dpt-large"):
        return DPTConfig(**VIT_LARGE, intermediate_size=4096, backbone_out_indices=[5, 11, 17, 23])
    if card.base.startswith("Intel/dpt-hybrid"):
        return DPTConfig(is_hybrid=True)
    if card.base.startswith("depth-anything"):
        return DepthAnythingConfig(backbone_config=DINOV2)
    if "mask2former" in card.base:
        return Mask2FormerConfig(backbone_config=SWIN)
    if "sam" in card.base:
        return SamConfig(vision_config=SAM.to_dict())
    return SegmenterConfig(**VIT_LARGE, image_size=card.image_size[0], patch_size=16)


def commands(text):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


cards = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def test_every_file_is_a_card_and_says_what_the_settings_say():
    assert {path.stem for path in FOLDER.glob("*.md")} == {card.name for card in CARDS}
    for card in CARDS:
        assert (FOLDER / f"{card.name}.md").read_text() == card_text(card), "run python -m model_cards.build"


@cards
def test_metadata_parse(card):
    data = ModelCard.load(FOLDER / f"{card.name}.md").data
    assert data.library_name == "transformers"
    assert data.base_model == (card.base if "/" in card.base else None)
    assert data.eval_results is None, "published numbers are not results of this model"


@cards
def test_the_setting_fits_the_model_at_its_size(card):
    setting = ta.TokenClusteringConfig(**card.accel)
    config = ta.accelerate_config(real_config(card), setting, card.image_size)
    assert config.accel["cluster_after"] == card.accel["cluster_after"]
    too_deep = ta.TokenClusteringConfig(**(card.accel | {"cluster_after": 99}))
    with pytest.raises(ValueError, match="99"):
        ta.accelerate_config(real_config(card), too_deep, card.image_size)


@cards
def test_commands_parse_and_name_the_setting(card, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    group, setting = get_command(app), ta.TokenClusteringConfig(**card.accel)
    seen = []
    for program, name, *arguments in commands((FOLDER / f"{card.name}.md").read_text()):
        assert program == "hf_tokaccel"
        seen.append(name)
        command = group.commands[name]
        if name == "convert":
            command, arguments = command.commands[arguments[0]], arguments[1:]
        context = command.make_context(name, list(arguments))
        if name == "accelerate":
            assert read_setting(context.params["accel"], None, None) == setting
            assert (context.params["model"], str(context.params["out"])) == (card.base, card.name)
        if name == "evaluate":
            context = command.commands[arguments[0]].make_context(arguments[0], arguments[1:])
            assert context.params["model"] == card.base
            assert parse_accels(context.params["accel"]) == [setting]
    assert {"accelerate", "evaluate"} <= set(seen)


@cards
def test_the_row_of_the_setting_is_the_marked_one(card):
    if card.published is None or card.published.ours is None:
        assert "Nothing was published" in card_text(card)
        return
    rows = dict(enumerate(card.published.rows))
    cell = rows[card.published.ours][card.published.columns.index("setting")]
    after, grid = card.accel["cluster_after"], " x ".join(map(str, card.accel["cluster_grid"]))
    assert cell.startswith(f"cluster_after {after}, {grid}")


@cards
def test_the_python_of_a_card_compiles(card):
    (block,) = re.findall(r"```python\n(.*?)```", Path(FOLDER / f"{card.name}.md").read_text(), re.DOTALL)
    compile(block, card.name, "exec")
    assert ta.TokenClusteringConfig(**card.accel) == eval(
        re.search(r"ta\.Token.*?\n\)", block, re.DOTALL).group(), {"ta": ta}
    )
