"""Training classifiers on semantic tokens: recipe, data, exact resuming, several processes, the folder for the Hub."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from scripts import launch_two, load_main
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor, pipeline

import hf_tokaccel as ta
from benchmarks import semantic_training
from hf_tokaccel.scenes import CLASS_NAMES, render_scenes
from hf_tokaccel.semantic import SemanticTokenConfig
from hf_tokaccel.training.classification import (
    SIZES,
    DropPath,
    Recipe,
    Teacher,
    build_model,
    build_processor,
    load_images,
)
from hf_tokaccel.training.classification.data import FURNITURE, Drawn, Steps
from hf_tokaccel.training.classification.models import input_size
from hf_tokaccel.training.classification.recipe import blocks, mix, parameter_groups, train_transform

SCRIPT = Path(__file__).parents[2] / "examples" / "train_semantic_tokens.py"
CLASSES = ("cat", "dog", "owl")
# Small enough for a test: 4 x 4 patches, 2 x 2 semantic tokens.
TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 4}
TINY |= {"image_size": 16, "patch_size": 4}
ACCEL = {"method": "semantic_tokens", "token_grid": 2, "base_layers": 1}
RUN = ["--dataset", "digits", "--limit", "60", "--model", "tiny", "--accel", json.dumps(ACCEL), "--cpu"]
RUN += ["--epochs", "2", "--batch-size", "20", "--warmup-epochs", "1", "--log-every", "1", "--eval-batch", "32"]
# Everything random is on.
RUN += ["--mixup", "0.8", "--cutmix", "1", "--drop-path", "0.2", "--randaugment", "1", "--erasing", "0.5"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", (SIZES["deit-tiny"][0], SIZES["deit-tiny"][1] | TINY))


@pytest.fixture(scope="module")
def main():
    return load_main(SCRIPT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of three classes that differ by colour, with one grey image, of sizes that differ."""
    root = tmp_path_factory.mktemp("animals")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 5)):
        for kind, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 80, (20 + number, 24, 3), dtype=np.uint8)
                pixels[..., kind] += 150
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    Image.fromarray(pixels[..., 0]).save(root / "train" / "owl" / "0.png")
    return root


def refusal(main, capsys, *arguments):
    """What the script says on a mistake."""
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


# Recipe


def test_rates_are_the_published_ones():
    recipe = Recipe()
    assert recipe.rate(0, 1251) == pytest.approx(1e-6)
    assert recipe.rate(20 * 1251, 1251) == pytest.approx(1e-3)
    assert recipe.rate(300 * 1251, 1251) == pytest.approx(1e-5)
    middle = Recipe(epochs=10, warmup_epochs=2, batch_size=512)
    assert middle.rate(6 * 5, 5) == pytest.approx((5e-4 + 5e-6) / 2)
    assert middle.rate(5, 5) == pytest.approx((5e-4 + 5e-7) / 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 0}, r"epochs=0 must be a whole number .* epochs=300"),
        ({"lr": -1.0}, r"lr=-1\.0 must be a number above 0; for example lr=0\.0005"),
        ({"lr": math.nan}, r"lr=nan must be"),
        ({"weight_decay": math.inf}, r"weight_decay=inf must be"),
        ({"erasing": 1.5}, r"erasing=1\.5 must be a number from 0 to 1"),
        ({"drop_path": 1.0}, r"drop_path=1\.0 must be a number from 0 to below 1, or None"),
        ({"magnitude": 30}, r"magnitude=30 must be a whole number up to 10"),
        ({"epochs": 5}, r"warmup_epochs=20 must be a number of epochs below those of the training, 5"),
    ],
)
def test_bad_recipes_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**values)


@pytest.mark.parametrize("accel", [None, {"recover": False}, {"recover": True}])
def test_drop_path_finds_every_layer_of_swin(accel):
    """And is the only one: the configuration's own would drop attention a second time."""
    setting = None if accel is None else SemanticTokenConfig(token_grid=2, **accel)
    model = build_model("swin-micro", CLASSES, accel=setting, dense=accel is None)
    assert model.config.drop_path_rate == 0
    assert len(blocks(model)) == 1 + 1 + 6 + 1
    DropPath(model, 0.9)
    pixels = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    first, again = (model.train()(pixel_values=pixels).logits for _ in range(2))
    assert not torch.equal(first, again)


@pytest.mark.parametrize("name", ["tiny", "swin-micro"])
def test_no_decay_for_vectors_and_position_tables(name):
    model = build_model(name, CLASSES, dense=True)
    plain, decayed = sorted(parameter_groups(model, Recipe()), key=lambda group: group["weight_decay"])
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0, 0.05)
    kept = {name for name, p in model.named_parameters() if any(p is other for other in plain["params"])}
    assert all(p.ndim > 1 for p in decayed["params"])
    more = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    more = more if name == "tiny" else {n for n, _ in model.named_parameters() if n.endswith("position_bias_table")}
    assert more
    assert kept == more | {n for n, p in model.named_parameters() if p.ndim == 1}


def test_learned_centres_are_decayed_as_published():
    model = build_model("tiny", CLASSES, accel=ACCEL)
    (centres,) = [p for name, p in model.named_parameters() if "global_centers" in name]
    (decayed,) = [g for g in parameter_groups(model, Recipe()) if g["weight_decay"]]
    assert any(centres is p for p in decayed["params"])


def test_layer_decay_by_depth():
    model = build_model("tiny", CLASSES, dense=True)
    scales = {id(p): g["scale"] for g in parameter_groups(model, Recipe(layer_decay=0.5)) for p in g["params"]}
    found = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert found["vit.embeddings.patch_embeddings.projection.weight"] == 0.5**5
    assert [found[f"vit.layers.{i}.mlp.fc1.weight"] for i in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert found["vit.layernorm.weight"] == found["classifier.weight"] == 1


def test_transform_gives_the_size_and_follows_the_recipe():
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    mean, std = [0.5] * 3, [0.25] * 3
    kinds = [type(step) for step in train_transform(Recipe(), (16, 16), mean, std).transforms]
    assert v2.RandAugment in kinds
    assert v2.ColorJitter not in kinds  # RandAugment takes its place
    kinds = [type(step) for step in train_transform(Recipe(randaugment=0), (16, 16), mean, std).transforms]
    assert v2.ColorJitter in kinds
    assert train_transform(Recipe(), (16, 16), mean, std)(image).shape == (3, 16, 16)
    off = {"crop_scale": 1.0, "flip": 0.0, "randaugment": 0, "color_jitter": 0.0, "erasing": 0.0}
    plain = train_transform(Recipe(**off), (30, 40), mean, std)(image)
    torch.testing.assert_close(plain, (image / 255 - 0.5) / 0.25)


def test_mix_is_of_two_images_and_their_labels():
    images, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8), torch.arange(4)
    same = mix(images, labels, Recipe(mixup=0.0, cutmix=0.0), 4)
    assert same[0] is images
    assert same[1] is labels
    torch.manual_seed(0)
    mixed, shares = mix(images, labels, Recipe(cutmix=0.0), 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed[:, 0, 0, 0], shares @ torch.arange(4.0))


def test_drop_path_drops_whole_images_of_a_branch(monkeypatch):
    """Also where attention sees windows; an image that is kept grows by 1 / (1 - rate)."""
    torch.manual_seed(0)
    model, pixels = build_model("swin-micro", CLASSES, dense=True), torch.rand(8, 3, 64, 64)
    layer = blocks(model)[3][1]
    seen = {}

    def note(when):
        def hook(module, args, output):
            seen[when] = output[0] if isinstance(output, tuple) else output

        return hook

    layer.attention.register_forward_hook(note("before"))
    layer.mlp.register_forward_hook(note("before mlp"))
    names, count = set(model.state_dict()), len(blocks(model))
    drop = DropPath(model, 0.9)
    layer.attention.register_forward_hook(note("after"))
    layer.mlp.register_forward_hook(note("after mlp"))
    model.train()(pixel_values=pixels)
    rate = 0.9 * 3 / (count - 1)
    for branch in ("", " mlp"):
        before, after = (seen[f"{when}{branch}"].reshape(8, -1) for when in ("before", "after"))
        kept = after.abs().sum(1) > 0
        assert 0 < kept.sum() < 8
        torch.testing.assert_close(after, before * kept[:, None] / (1 - rate))
    model.eval()
    with torch.no_grad():
        hooked = model(pixel_values=pixels).logits
        drop.remove()
        torch.testing.assert_close(model(pixel_values=pixels).logits, hooked, rtol=0, atol=0)
        torch.testing.assert_close(model.train()(pixel_values=pixels).logits, hooked)
    assert set(model.state_dict()) == names


def test_drop_path_needs_layers():
    with pytest.raises(ValueError, match=r"drop_path=0\.1 cannot be applied to Linear.*use drop_path=0"):
        DropPath(torch.nn.Linear(2, 2), 0.1)


def test_help_explains_every_option(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--mix-probability MIX_PROBABILITY share of batches that mixup or cutmix changes; where both" in said
    assert "evaluation crops from the centre. (default: 0.875)" in said
    assert "--eval-every EVAL_EVERY epochs between two evaluations" in said


# Data


def test_steps_are_the_same_for_any_processes_and_parts():
    def images(processes, accumulated):
        parts = [Steps(23, 8, (p, processes, accumulated), (1, 5), 7) for p in range(processes)]
        rows = [list(part) for part in parts]
        assert {len(row) for row in rows} == {len(parts[0])} == {4 * accumulated}
        return [
            sorted(i for row in rows for part in row[step * accumulated : (step + 1) * accumulated] for i in part)
            for step in range(4)
        ]

    whole = images(1, 1)
    assert whole == images(2, 1) == images(2, 2) == images(1, 4)
    assert [len(set(step)) for step in whole] == [8] * 4
    first = {index for part in Steps(23, 8, (0, 1, 1), (0, 2), 7) for _, index in part}
    assert len(first) == 16  # an epoch sees no image twice


def test_what_is_drawn_depends_on_epoch_and_image_alone():
    digits = load_images("digits", "train", (16, 16), limit=20)
    transform = train_transform(Recipe(), (16, 16), [0.5] * 3, [0.5] * 3)
    one, again = (Drawn(digits, transform, seed=3) for _ in range(2))
    state = torch.get_rng_state()
    first = one[4, 11]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(again[4, 11][0], first[0])
    assert not torch.equal(one[5, 11][0], first[0])
    assert not torch.equal(Drawn(digits, transform, seed=4)[4, 11][0], first[0])


def test_digits_are_split_once():
    parts = [load_images("digits", split, (16, 16)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1197, 200, 400]
    assert all(part.labels.unique().tolist() == list(range(10)) for part in parts)
    image, label = parts[0][5]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 16, 16)
    assert parts[0].classes[label] == "5"  # the data set begins with 0 to 9


def test_scenes_have_one_answer_whatever_their_size():
    scenes, large = (load_images("scenes", "validation", (side, side), limit=10) for side in (48, 64))
    assert scenes.classes == list(FURNITURE)
    assert scenes.labels.bincount().tolist() == [2] * 5
    assert torch.equal(scenes.labels, large.labels)
    kinds = [CLASS_NAMES.index(name) for name in FURNITURE]
    every = render_scenes(range(256), (48, 48), "validation", materials="typical")
    images = (every.image * 255).round().to(torch.uint8)
    for image, label in scenes:
        (number,) = [i for i in range(256) if torch.equal(images[i], image)]
        shares = torch.stack([(every.labels[number] == kind).float().mean() for kind in kinds])
        first, second = shares.topk(2).values
        assert shares.argmax() == label
        assert first >= max(0.02, 1.5 * second)
    with pytest.raises(ValueError, match="3 scenes are too few for 5 classes"):
        load_images("scenes", "train", (48, 48), limit=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "nowhere"], "dataset 'nowhere' is neither known nor a folder; use digits or scenes"),
        (["--dataset", "digits", "--val-split", "dev"], "'digits' has no split 'dev'; it has train, validation, test"),
        (["--dataset", "digits", "--val-share", "0.2"], "has a validation split of its own"),
        (["--dataset", "FOLDER", "--label-column", "kind"], "has no column 'kind'; it has image, label"),
        (["--dataset", "FOLDER", "--val-split", "dev"], "split 'dev' cannot be loaded"),
        (["--dataset", "FOLDER", "--val-share", "1.5"], "--val-share 1.5 must be above 0 and below 1"),
    ],
)
def test_bad_data_are_refused(main, folder, tmp_path, capsys, arguments, said):
    arguments = [str(folder) if word == "FOLDER" else word for word in arguments]
    assert said in refusal(main, capsys, *arguments, "--model", "tiny", "--cpu", "--output", str(tmp_path / "a"))


def test_one_class_and_broken_files_are_refused(main, tmp_path, capsys):
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "data" / "train" / "cat" / "0.png")
    options = ["--dataset", str(tmp_path / "data"), "--val-split", "train", "--model", "tiny", "--cpu", "--dense"]
    options += ["--output", str(tmp_path / "a"), "--batch-size", "2", "--epochs", "1", "--warmup-epochs", "0"]
    assert "at least 2 classes are needed" in refusal(main, capsys, *options)
    (tmp_path / "data" / "train" / "dog").mkdir()
    (tmp_path / "data" / "train" / "dog" / "1.png").write_bytes(b"no picture")
    assert "row 1 of" in refusal(main, capsys, *options)


# Models


@pytest.mark.parametrize(
    ("name", "millions"),
    [("deit-tiny", 5.72), ("deit-small", 22.05), ("deit-base", 86.57), ("swin-tiny", 28.29), ("swin-small", 49.61)],
)
def test_named_sizes_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = build_model(name, [str(i) for i in range(1000)], dense=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.config.image_size == 224


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("deit-huge", {}, r"'deit-huge' is neither a known size \(deit-tiny, .* nor can it be loaded"),
        ("tiny", {"image_size": 18}, r"image_size=18 must be a multiple of tiny's patch size 4; for example 16"),
        ("tiny", {"dense": True, "accel": ACCEL}, r"leave out either --dense or --accel"),
        ("tiny", {"accel": ACCEL | {"base_layers": 3}}, r"base_layers=3"),
        ("tiny", {"accel": ACCEL | {"token_grid": 9}}, r"token_grid"),
        ("tiny", {"accel": {"cluster_after": 1, "cluster_grid": 2}}, r"needs no training"),
    ],
)
def test_bad_models_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        build_model(name, CLASSES, **options)


def test_plain_folder_starts_semantic_tokens_and_names_what_is_untrained(tmp_path):
    torch.manual_seed(0)
    plain = build_model("tiny", CLASSES, dense=True)
    plain.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="not trained yet"):
        model = build_model(str(tmp_path), CLASSES, accel=ACCEL)
    assert torch.equal(model.classifier.weight, plain.classifier.weight)
    with pytest.warns(UserWarning, match="the head, whose classes are others, starts untrained"):
        other = build_model(str(tmp_path), ("ant", "bee", "cow"), dense=True)
    assert other.config.id2label == {0: "ant", 1: "bee", 2: "cow"}
    assert not torch.equal(other.classifier.weight, plain.classifier.weight)
    assert torch.equal(other.vit.layers[0].mlp.fc1.weight, plain.vit.layers[0].mlp.fc1.weight)
    with pytest.warns(UserWarning, match="classifier.weight starts untrained"):
        build_model(str(tmp_path), ("ant", "bee"), dense=True)


def test_semantic_folder_keeps_its_setting(tmp_path):
    torch.manual_seed(0)
    build_model("tiny", CLASSES, accel=ACCEL).save_pretrained(tmp_path)
    for accel in (None, ACCEL):
        assert build_model(str(tmp_path), CLASSES, accel=accel).config.accel["base_layers"] == 1
    with pytest.raises(ValueError, match="with another setting: leave out --accel"):
        build_model(str(tmp_path), CLASSES, accel=ACCEL | {"base_layers": 2, "generation_layers": 1})
    with pytest.raises(ValueError, match="--dense needs a plain one"):
        build_model(str(tmp_path), CLASSES, dense=True)


def test_evaluation_crops_as_published():
    assert input_size(build_processor("deit-small", 0.875)) == (224, 224)
    assert build_processor("deit-small", 0.875).size["shortest_edge"] == 256
    assert build_processor("deit-small", 1.0, 96).size == {"height": 96, "width": 96}


def test_teacher_sees_images_in_its_own_normalisation(tmp_path):
    torch.manual_seed(0)
    build_model("tiny", CLASSES, dense=True).save_pretrained(tmp_path)
    theirs = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    theirs.save_pretrained(tmp_path)
    teacher, own = Teacher.load(str(tmp_path), CLASSES), build_processor("tiny", 1.0)
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    pixels = own(image, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.image_mean, own.image_std))
    with torch.no_grad():
        expected = teacher.model(**theirs(image, return_tensors="pt")).logits
    torch.testing.assert_close(teacher.logits(pixels, mean, std), expected)
    with pytest.raises(ValueError, match=r"tells other classes apart \(cat, dog, owl; 3 in all\)"):
        Teacher.load(str(tmp_path), ("cat", "dog"))


# Runs


def test_resumed_training_equals_uninterrupted_training(main, tmp_path, capsys):
    """Stopped in the middle of an epoch, with a teacher, accumulated gradients and averaged weights."""
    torch.manual_seed(0)
    teacher = build_model("tiny", [str(i) for i in range(10)], dense=True)
    teacher.save_pretrained(tmp_path / "teacher")
    build_processor("tiny", 1.0).save_pretrained(tmp_path / "teacher")
    options = [*RUN, "--accumulate", "2", "--ema-decay", "0.5", "--distill", str(tmp_path / "teacher")]
    assert main([*options, "--output", str(tmp_path / "whole")]) == 0
    parts = [*options, "--output", str(tmp_path / "parts")]
    assert main([*parts, "--stop-at", "4"]) == 0
    assert not (tmp_path / "parts").exists()
    assert main([*parts, "--stop-at", "5", "--resume", "--workers", "1"]) == 0
    assert main([*parts, "--resume"]) == 0
    states = [load_file(tmp_path / f"{run}-work" / "checkpoint" / "model.safetensors") for run in ("whole", "parts")]
    states += [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts")]
    for one, two in (states[:2], states[2:]):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[2])  # these are averaged
    logs = [(tmp_path / run / "training_log.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len([line for line in logs[0] if "lr" in line]) == 6

    work = ["--work", str(tmp_path / "parts-work"), "--output", str(tmp_path / "new")]
    said = refusal(main, capsys, *options, *work, "--resume", "--lr", "1", "--seed", "3")
    assert "trained with another recipe: lr was 0.016, is 1.0; seed was 0, is 3. Resume with" in said
    said = refusal(main, capsys, *options, *work, "--resume", "--accel", "token_grid=2,generation_layers=1")
    assert "accel was" in said
    with pytest.warns(UserWarning, match="of 1 processes and 2 accumulated parts, this run of 1 and 1"):
        assert main([*options, *work, "--resume", "--accumulate", "1"]) == 0
    assert "holds a checkpoint: add --resume" in refusal(main, capsys, *options, *work)
    nothing = ["--work", str(tmp_path / "nothing"), "--resume"]
    assert "no checkpoint in" in refusal(main, capsys, *options, *nothing)


def test_folder_of_images_to_folder_for_the_hub(main, folder, tmp_path, capsys):
    options = ["--dataset", str(folder), "--model", "tiny", "--accel", "token_grid=2,base_layers=1", "--cpu"]
    options += ["--epochs", "6", "--warmup-epochs", "1", "--batch-size", "6", "--lr", "0.3", "--drop-path", "0"]
    options += ["--mixup", "0", "--cutmix", "0", "--randaugment", "0", "--color-jitter", "0", "--erasing", "0"]
    assert main([*options, "--output", str(tmp_path / "model"), "--keep", "last"]) == 0
    progress = capsys.readouterr().err
    assert "epoch 6: accuracy" in progress
    card = ModelCard.load(tmp_path / "model" / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value > 0.6  # chance is a third
    assert card.data.library_name == "transformers"
    assert "| lr | 0.3 |" in card.text
    assert '"token_grid": [2, 2]' in card.text

    assert (
        main(["--dataset", str(folder), "--evaluate", str(tmp_path / "model"), "--test-split", "validation", "--cpu"])
        == 0
    )
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["accuracy"] == pytest.approx(result.metric_value, abs=5e-5)
    assert scores["images"] == 15

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "TokAccelSTViTForImageClassification"
    classifier = pipeline("image-classification", model=str(tmp_path / "model"), device="cpu")
    (best, *_) = classifier(str(folder / "validation" / "dog" / "3.png"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = Image.open(folder / "validation" / "dog" / "3.png")
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1).max()
    assert best["score"] == pytest.approx(expected.item(), abs=1e-5)
    said = refusal(main, capsys, "--dataset", "digits", "--evaluate", str(tmp_path / "model"), "--cpu")
    assert "tells other classes apart (cat, dog, owl; 3 in all) than the data (0, 1, 2, 3, 4; 10 in all)" in said


def test_held_out_share_is_no_part_of_the_training(folder):
    parts = [load_images(str(folder), "train", (16, 16), share=(0.25, part)) for part in ("rest", "held out")]
    assert [len(part) for part in parts] == [18, 6]
    known = {tuple(image.flatten().tolist()) for image, _ in parts[0]}
    assert not any(tuple(image.flatten().tolist()) in known for image, _ in parts[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch-size", "21", "--accumulate", "2"], "batch_size=21 must be a multiple of 2"),
        (["--batch-size", "100"], "batch_size=100 must be at most 60, as many images as digits/train has"),
        (["--eval-every", "0"], "eval_every=0 must be at least 1"),
        (["--keep", "first"], "keep='first' must be one of best, last"),
        (["--accel", "token_grid"], "where one key=value each is expected; for example token_grid=4x4,base_layers=4"),
        (["--distill", "nowhere"], "'nowhere' is neither a known size"),
        (["--lr", "1e30"], "the loss is nan at step"),
    ],
)
def test_bad_options_are_refused(main, tmp_path, capsys, arguments, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert said in refusal(main, capsys, *RUN, *arguments, "--output", str(tmp_path / "a"))


def test_best_weights_are_kept(main, tmp_path):
    options = [*RUN, "--output", str(tmp_path / "a"), "--epochs", "4", "--lr", "0.3"]
    assert main(options) == 0
    state = json.loads((tmp_path / "a-work" / "checkpoint" / "run.json").read_text())
    accuracies = [row["accuracy"] for row in state["history"]]
    assert state["best"]["accuracy"] == max(accuracies)
    assert state["best"]["epoch"] == accuracies.index(max(accuracies)) + 1
    (value, *_) = [r.metric_value for r in ModelCard.load(tmp_path / "a" / "README.md").data.eval_results]
    assert value == pytest.approx(max(accuracies), abs=5e-5)


@pytest.mark.slow
@pytest.mark.graph
def test_two_processes_train_and_evaluate_as_one(main, tmp_path, capsys):
    torch.manual_seed(0)
    start = tmp_path / "start"
    ta_config = SIZES["tiny"][0](**SIZES["tiny"][1], num_labels=10, id2label={i: str(i) for i in range(10)})
    model = AutoModelForImageClassification.from_config(ta.accelerate_config(ta_config, SemanticTokenConfig(**ACCEL)))
    model.save_pretrained(start)
    build_processor("tiny", 1.0).save_pretrained(start)
    # Without mixing and dropping, which are drawn per process, both see the same batches.
    options = ["--dataset", "digits", "--limit", "61", "--model", str(start), "--cpu", "--epochs", "2"]
    options += ["--batch-size", "20", "--warmup-epochs", "0", "--drop-path", "0", "--eval-batch", "8"]
    printed = launch_two(SCRIPT, *options, "--output", str(tmp_path / "two"))
    assert main([*options, "--output", str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    for name in one:
        # Gradients are summed in another order.
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    assert "- processes: 2\n" in (tmp_path / "two" / "README.md").read_text()

    # 61 images in batches of 8 do not divide among two processes: each still counts once.
    by_two = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["digits/test"]
    scoring = ["--dataset", "digits", "--limit", "61", "--evaluate", str(tmp_path / "two"), "--eval-batch", "8"]
    capsys.readouterr()
    assert main([*scoring, "--cpu"]) == 0
    by_one = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert by_one["images"] == 61
    assert by_two.pop("loss") == pytest.approx(by_one["loss"], rel=1e-6)
    assert by_two == {name: by_one[name] for name in ("accuracy", "top5")}


def test_experiment_pairs_seeds_and_repeats_no_run(tmp_path, monkeypatch, capsys):
    saved = {}
    monkeypatch.setattr(semantic_training, "save", lambda name, result: saved.update(result) or semantic_training.ROOT)
    options = ["--data", "digits", "--size", "tiny", "--accel", "token_grid=2,base_layers=1", "--images", "64"]
    options += ["--seeds", "2", "--rounds", "2", "--batches", "1", "--work", str(tmp_path), "--cpu"]
    semantic_training.main([*options, "--epochs", "3"])
    base, ours = saved["rows"]
    assert (base["kind"], ours["kind"]) == ("base", "semantic tokens")
    assert (base["accel"], ours["accel"]["token_grid"]) == (None, [2, 2])
    assert ours["gflops"] < base["gflops"]
    assert ours["differences"] == [one - other for one, other in zip(ours["accuracy"], base["accuracy"], strict=True)]
    assert ours["mean_difference"] == pytest.approx(sum(ours["differences"]) / 2)
    assert f"{100 * base['mean']:.1f} ± {100 * base['deviation']:.1f}" in saved["markdown"]
    results = sorted(tmp_path.glob("*/result.json"))
    assert len(results) == 4
    scores = json.loads(results[0].read_text())["test"]
    written = [path.stat().st_mtime_ns for path in results]
    semantic_training.main([*options, "--epochs", "3"])
    assert [path.stat().st_mtime_ns for path in results] == written
    with pytest.raises(SystemExit):
        semantic_training.main([*options, "--epochs", "4"])
    assert "holds a run with another recipe: choose another --work" in capsys.readouterr().err

    # What was interrupted after its last checkpoint ends with the same scores.
    results[0].unlink()
    semantic_training.main([*options, "--epochs", "3"])
    assert json.loads(results[0].read_text())["test"] == scores
