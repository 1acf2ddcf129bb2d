"""The segmentation parts of `hf_tokaccel.evaluation` by themselves, against numbers worked out by hand or by loops."""

import math

import datasets
import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import nn
from transformers import SegformerConfig

from hf_tokaccel.evaluation import (
    Result,
    Row,
    SegmentationMetric,
    UnreadableError,
    Variant,
    Windows,
    confusion_matrix,
    metrics_from_counts,
    to_markdown,
)
from hf_tokaccel.evaluation.pictures import Panel
from hf_tokaccel.evaluation.segmentation.data import CITYSCAPES, open_segmentation_dataset, to_classes
from hf_tokaccel.evaluation.segmentation.pictures import (
    DIFFERENCES,
    PALETTE,
    by_area,
    class_colours,
    differences,
    draw_segmentation,
)
from hf_tokaccel.evaluation.segmentation.task import SegmentationProtocol, SegmentationTask, choose_windows
from hf_tokaccel.measure.metrics.bootstrap import bootstrap, interval
from hf_tokaccel.measure.metrics.segmentation import IGNORED, image_sums
from hf_tokaccel.models.segmenter import SegmenterConfig
from hf_tokaccel.results.tables import to_class_table


def random_maps(count, classes, seed=0, size=(9, 7)):
    """Predictions that are right on about half of the pixels, and labels, of which some do not count."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(IGNORED, classes, (count, *size))
    predictions = np.where(rng.random(labels.shape) < 0.5, labels.clip(0), rng.integers(0, classes, labels.shape))
    return torch.from_numpy(predictions), torch.from_numpy(labels)


# Metrics


def test_metrics_of_five_pixels():
    prediction, label = torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[0, 1, 1, 1, IGNORED]])
    assert confusion_matrix(prediction, label, 3).tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    sums = image_sums(prediction, label, 3)
    assert sums.tolist() == [1, 2, 0, 2, 2, 0, 1, 3, 0, 1]
    metrics = metrics_from_counts(sums)
    assert metrics["iou"][:2].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert metrics["iou"][2].isnan()  # class 2 is predicted only where nothing counts
    assert metrics["miou"].item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics["mean_accuracy"].item() == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["pixel_accuracy"].item() == pytest.approx(3 / 4)


def metrics_by_loops(predictions, labels, classes):
    found, either, true = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for p, t in zip(predictions.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if t == IGNORED:
            continue
        found[t] += p == t
        true[t] += 1
        for c in {p, t}:
            either[c] += 1
    iou = [f / e for f, e in zip(found, either, strict=True) if e]
    accuracy = [f / t for f, t in zip(found, true, strict=True) if t]
    return sum(iou) / len(iou), sum(accuracy) / len(accuracy), found.sum() / true.sum()


def test_metrics_agree_with_counting_pixels_and_do_not_depend_on_the_split():
    predictions, labels = random_maps(7, 5)
    labels[labels == 3] = 2  # class 3 is predicted, but never true
    labels[labels == 4] = IGNORED
    predictions[predictions == 4] = 0  # class 4 does not occur at all
    sums = torch.stack([image_sums(p, t, 5) for p, t in zip(predictions, labels, strict=True)])
    metrics = metrics_from_counts(sums.sum(0))
    expected = metrics_by_loops(predictions.numpy(), labels.numpy(), 5)
    found = [metrics[name].item() for name in ("miou", "mean_accuracy", "pixel_accuracy")]
    assert found == pytest.approx(expected, rel=1e-12)
    assert metrics["iou"][3] == 0
    assert metrics["iou"][4].isnan()
    for cut in range(1, 7):
        assert torch.equal(sums[:cut].sum(0) + sums[cut:].sum(0), sums.sum(0))


def test_images_without_valid_pixels_do_not_count():
    assert not image_sums(torch.zeros(2, 2), torch.full((2, 2), IGNORED), 3).any()


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([[3]], [[0]], r"prediction holds class 3, which must be from 0 to 2"),
        ([[0]], [[255]], r"label holds class 255, which must be from 0 to 2, or -1"),
        ([[0]], [[-2]], r"label holds class -2"),
        ([[0, 0]], [[0]], r"prediction of shape \(1, 2\) must have the shape of its label, \(1, 1\)"),
    ],
)
def test_maps_that_do_not_fit(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor(label), 3)


def test_metric_class_works_offline_and_combines():
    pairs = [tuple(m[0].numpy() for m in random_maps(1, 4, seed=i, size=(4 + i, 5))) for i in range(2)]
    stored = [np.where(label == IGNORED, 255, label) for _, label in pairs]
    arguments = {"predictions": [p for p, _ in pairs], "references": stored}
    metrics = SegmentationMetric().compute(**arguments, num_classes=4)
    flat = (np.concatenate([m.ravel() for m in maps]) for maps in zip(*pairs, strict=True))
    expected = metrics_by_loops(*flat, 4)
    assert [metrics[n] for n in ("miou", "mean_accuracy", "pixel_accuracy")] == pytest.approx(expected)
    assert len(metrics["iou"]) == 4
    batched = SegmentationMetric()
    for prediction, label in zip(*arguments.values(), strict=True):
        batched.add_batch(predictions=[prediction], references=[label])
    assert batched.compute(num_classes=4) == metrics
    both = evaluate.combine({"a": SegmentationMetric(), "b": SegmentationMetric()}, force_prefix=True)
    assert both.compute(**arguments, num_classes=4)["a_miou"] == metrics["miou"]
    fewer = SegmentationMetric().compute(**arguments, num_classes=4, ignored=(255, 0))
    assert fewer["pixel_accuracy"] != metrics["pixel_accuracy"]
    with pytest.raises(ValueError, match="label holds class 255"):
        SegmentationMetric().compute(**arguments, num_classes=4, ignored=())


def test_bootstrap_draws_whole_images_the_same_ones_for_every_variant():
    predictions, labels = random_maps(6, 3)
    counts = torch.stack([image_sums(p, t, 3) for p, t in zip(predictions, labels, strict=True)])
    drawn = bootstrap(torch.stack([counts, counts, counts.flip(0)]), 50, seed=3)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert (drawn[..., -1] == 6).all()
    assert torch.equal(drawn, bootstrap(torch.stack([counts, counts, counts.flip(0)]), 50, seed=3))
    assert not torch.equal(drawn[0], bootstrap(counts[None], 50, seed=4)[0])
    times = np.random.default_rng(3).multinomial(6, [1 / 6] * 6, size=50)[17]
    again = torch.stack([row for row, n in zip(counts, times, strict=True) for _ in range(n)]).sum(0)
    assert torch.equal(drawn[0, 17], again)


def test_intervals():
    values = torch.arange(1001).double()
    assert interval(values) == pytest.approx((25, 975))
    assert interval(torch.tensor([math.nan, 2.0, 2.0]).double()) == (2, 2)


def make_task(windows=None, classes=("a", "b", "c"), **protocol):
    return SegmentationTask(Processor(), SegmentationProtocol(classes, windows, **protocol), batch_size=4)


def test_the_share_kept_is_paired():
    """A row that is right on the same share of every image keeps that share exactly, however much images differ."""
    dense = torch.tensor([[8.0, 0, 8, 2, 10, 0], [2, 0, 2, 8, 10, 0], [5, 0, 5, 5, 10, 0], [0, 0, 0, 0, 0, 0]])
    dense = torch.cat([dense, torch.tensor([[1.0], [1], [1], [0]])], 1).double()
    half = dense.clone()
    half[:, 0] /= 2
    half[:, 2] /= 2
    half[:, 3] += half[:, 2]
    summaries = make_task(classes=("a", "b"), resamples=200).summarise(torch.stack([dense, half]))
    kept = summaries[1].metrics["kept"]
    assert kept == pytest.approx(summaries[1].metrics["miou"] / summaries[0].metrics["miou"])
    low, high = summaries[1].intervals["kept"]
    assert low == pytest.approx(0.5, abs=1e-9)
    assert high == pytest.approx(0.5, abs=1e-9)
    low, high = summaries[0].intervals["miou"]
    assert low < summaries[0].metrics["miou"] < high
    assert high - low > 0.1
    assert "kept" not in summaries[0].intervals
    assert summaries[0].classes["a"] == pytest.approx(15 / 30)


# Sliding windows


def test_window_positions():
    windows = Windows(8, 5)
    assert windows.starts(8) == [0]
    assert windows.starts(9) == [0, 1]
    assert windows.starts(13) == [0, 5]
    assert windows.starts(14) == [0, 5, 6]
    assert windows.corners((8, 13)) == [(0, 0), (0, 5)]
    assert windows.fit((8, 20)) == (8, 20)
    assert windows.fit((4, 6)) == (8, 12)
    assert windows.fit((40, 1)) == (320, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Windows(8, 9), r"stride=9 must be from 1 to the crop of 8 pixels.*stride=5"),
        (lambda: Windows(8, 0), "stride=0"),
        (lambda: Windows(0, 1), "crop=0 must be at least 1"),
        (lambda: Windows(20, 4).check_patch(8), "crop=20 must be a multiple of the patch size 8, for example 16"),
    ],
)
def test_bad_windows(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Processor:
    """Only normalises; whole images are resized to 16 x 16."""

    size = {"height": 16, "width": 16}
    do_resize = True

    def __call__(self, images, do_resize=True, **_):
        pixels = torch.from_numpy(images).permute(2, 0, 1)[None].float() / 255
        return {"pixel_values": F.interpolate(pixels, (16, 16), mode="bilinear") if do_resize else pixels}


class Model(nn.Module):
    """Logits on a grid of 4 x 4 pixels that depend on where in the crop a pixel is."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.config = SegmenterConfig()
        self.conv = nn.Conv2d(3, classes, 4, stride=4)
        self.places = nn.Parameter(torch.randn(classes, 64, 64))
        self.sizes = []

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape))
        logits = self.conv(pixel_values)
        output = type("Output", (), {})()
        output.logits = logits + self.places[:, : logits.shape[-2], : logits.shape[-1]]
        return output


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_sliding_windows_agree_with_averaging_pixel_by_pixel():
    model, windows = Model(), Windows(8, 5)
    task, image = make_task(windows), image_of(11, 19)
    sample = {"image": image, "label": torch.zeros(11, 19, dtype=torch.int16)}
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    total, count = np.zeros((3, 11, 19)), np.zeros((11, 19))
    with torch.no_grad():
        for top in (0, 3):
            for left in (0, 5, 10, 11):
                crop = model(pixels[..., top : top + 8, left : left + 8]).logits
                crop = F.interpolate(crop, (8, 8), mode="bilinear")[0].numpy()
                for y in range(8):
                    for x in range(8):
                        total[:, top + y, left + x] += crop[:, y, x]
                        count[top + y, left + x] += 1
    item = task.encode(sample)
    with torch.no_grad():
        logits = task.run(Variant("dense", model), item["pixel_values"][None].repeat(2, 1, 1, 1))
    assert logits.shape == (8, 2, 3, 2, 2)
    np.testing.assert_allclose(windows.merge(logits[:, 1], (11, 19)).numpy(), total / count, atol=1e-5)
    prediction = task.predict(Variant("dense", model), sample)
    np.testing.assert_array_equal(prediction.numpy(), (total / count).argmax(0))
    assert max(size[0] for size in model.sizes[8:]) == 4  # the task's batch size


def test_small_images_are_enlarged_and_the_prediction_has_their_size():
    model = Model()
    sample = {"image": image_of(5, 7), "label": torch.zeros(5, 7, dtype=torch.int16)}
    assert make_task(Windows(8, 8)).predict(Variant("dense", model), sample).shape == (5, 7)
    assert {size[-2:] for size in model.sizes} == {(8, 8)}
    large = make_task(Windows(8, 8), resizes=True).encode({"image": image_of(40, 60)})
    assert large["pixel_values"].shape == (3, 8, 12)
    assert make_task(Windows(8, 8)).encode({"image": image_of(40, 60)})["pixel_values"].shape == (3, 40, 60)
    assert make_task().predict(Variant("dense", model), sample).shape == (5, 7)
    assert model.sizes[-1][-2:] == (16, 16)


def test_lower_resolution_shrinks_the_windows():
    model = Model()
    sample = {"image": image_of(16, 24), "label": torch.zeros(16, 24, dtype=torch.int16)}
    prediction = make_task(Windows(16, 16)).predict(Variant("smaller", model, 0.5, 4), sample)
    assert prediction.shape == (16, 24)
    assert model.sizes == [(2, 3, 8, 8)]


def test_windows_follow_the_configuration():
    plain, stored = SegmenterConfig(), SegmenterConfig(inference_window_size=512, inference_window_stride=384)
    assert choose_windows(plain) is None
    assert choose_windows(stored) == Windows(512, 384)
    assert choose_windows(stored, "whole") is None
    assert choose_windows(stored, crop=640) == Windows(640, 640)
    assert choose_windows(stored, stride=100) == Windows(512, 100)
    assert choose_windows(plain, "sliding", crop=64, stride=32) == Windows(64, 32)
    assert choose_windows(SegformerConfig(), crop=33) == Windows(33, 33)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inference": "crops"}, "inference='crops' must be one of auto, whole, sliding"),
        ({"inference": "sliding"}, "sliding windows need a crop.*crop=512"),
        ({"stride": 32}, "sliding windows need a crop"),
        ({"inference": "whole", "crop": 64}, "crop=64 needs inference='sliding'"),
        ({"inference": "whole", "stride": 64}, "stride=64 needs inference='sliding'"),
        ({"crop": 100}, "crop=100 must be a multiple of the patch size 16, for example 96"),
        ({"crop": 64, "stride": 65}, "stride=65"),
        ({"crop": 64, "stride": 0}, "stride=0"),
        ({"crop": 0}, "crop=0"),
    ],
)
def test_bad_choices_of_windows(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_windows(SegmenterConfig(), **arguments)


def test_image_and_label_of_different_sizes_are_refused():
    sample = {"name": "a.jpg", "image": image_of(5, 7), "label": torch.zeros(5, 8)}
    with pytest.raises(ValueError, match=r"image a.jpg has 5x7 pixels, but its label 5x8"):
        make_task().encode(sample)


# Data sets


def save_pair(folder, image, label, values):
    for name in (image, label):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, dtype=np.uint8)
    Image.fromarray(image_of(*values.shape)).save(folder / image)
    Image.fromarray(values).save(folder / label)


ROOT, CITY = "ADEChallengeData2016", "frankfurt/frankfurt_000000_000294"
CONTEXT = ("VOC2010/JPEGImages/2008_000002.jpg", "VOC2010/SegmentationClassContext/2008_000002.png")
PROTOCOLS = {
    "ade20k": (
        "ade20k",
        150,
        (f"{ROOT}/images/validation/ADE_val_1.jpg", f"{ROOT}/annotations/validation/ADE_val_1.png"),
        ([[0, 1, 150]], [[IGNORED, 0, 149]]),
    ),
    "cityscapes-ids": (
        "cityscapes",
        19,
        (f"leftImg8bit/val/{CITY}_leftImg8bit.png", f"gtFine/val/{CITY}_gtFine_labelIds.png"),
        ([[7, 8, 33, 26, 0, 9, 255, 30]], [[0, 1, 18, 13, *[IGNORED] * 4]]),
    ),
    "cityscapes-train-ids": (
        "cityscapes",
        19,
        (f"leftImg8bit/val/{CITY}_leftImg8bit.png", f"gtFine/val/{CITY}_gtFine_labelTrainIds.png"),
        ([[0, 18, 255]], [[0, 18, IGNORED]]),
    ),
    "pascal-59": ("pascal_context59", 59, CONTEXT, ([[0, 1, 59]], [[IGNORED, 0, 58]])),
    "pascal-60": ("pascal_context60", 60, CONTEXT, ([[0, 1, 59]], [[0, 1, 59]])),
}


def write_protocol(folder, protocol):
    kind, classes, names, (values, expected) = PROTOCOLS[protocol]
    save_pair(folder, *names, values)
    # What must not be read: another split, and the other label files of Cityscapes.
    if kind == "ade20k":
        save_pair(folder, f"{ROOT}/images/training/b.jpg", f"{ROOT}/annotations/training/b.png", [[0]])
    elif kind == "cityscapes":
        save_pair(
            folder, f"leftImg8bit/train/{CITY}_leftImg8bit.png", f"gtFine/train/{CITY}_gtFine_labelIds.png", [[7]]
        )
        save_pair(folder, f"gtFine/val/{CITY}_gtFine_color.png", f"gtFine/val/{CITY}_gtFine_instanceIds.png", [[7]])
    else:
        save_pair(folder, *(name.replace("2008_000002", "other") for name in CONTEXT), [[1]])
        listing = folder / "VOC2010/ImageSets/SegmentationContext/val.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text("2008_000002\n")
    return kind, classes, names, expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols(tmp_path, protocol):
    kind, classes, names, expected = write_protocol(tmp_path, protocol)
    dataset = open_segmentation_dataset(f"{kind}:{tmp_path}", num_classes=classes)
    assert len(dataset.samples) == 1
    sample = dataset.samples[0]
    assert sample["label"].tolist() == expected
    assert sample["image"].shape == (*np.shape(expected), 3)
    assert sample["name"] == str(tmp_path / names[0])
    assert dataset.resizes == (kind != "cityscapes")
    with pytest.raises(ValueError, match=rf"has {classes} classes, but the model has 21"):
        open_segmentation_dataset(f"{kind}:{tmp_path}", num_classes=21)
    with pytest.raises(ValueError, match=r"has no .*expected"):
        open_segmentation_dataset(f"{kind}:{tmp_path}", num_classes=classes, split="hidden")


def test_label_ids_are_preferred_and_all_classes_of_cityscapes_are_reached(tmp_path):
    for name, values in (("labelIds", [[*range(34), 255]]), ("labelTrainIds", [[0] * 35])):
        save_pair(tmp_path, f"leftImg8bit/val/{CITY}_leftImg8bit.png", f"gtFine/val/{CITY}_gtFine_{name}.png", values)
    label = open_segmentation_dataset(f"cityscapes:{tmp_path}", num_classes=19).samples[0]["label"]
    assert label[label != IGNORED].tolist() == list(range(19))
    assert len(CITYSCAPES) == 19


@pytest.mark.parametrize(
    ("protocol", "value"),
    [("ade20k", 151), ("cityscapes-ids", 34), ("cityscapes-train-ids", 19), ("pascal-59", 60), ("pascal-60", 255)],
)
def test_values_outside_of_the_classes_are_named_with_their_file(tmp_path, protocol, value):
    kind, classes, names, _ = write_protocol(tmp_path, protocol)
    save_pair(tmp_path, *names, [[1, value]])
    dataset = open_segmentation_dataset(f"{kind}:{tmp_path}", num_classes=classes)
    with pytest.raises(ValueError, match=rf"{names[1]} holds the value {value}, which is no class.*0 to ") as caught:
        dataset.samples[0]
    assert not isinstance(caught.value, UnreadableError)  # never skipped: the data set is not what it is said to be


def test_labels_need_one_whole_number_per_pixel(tmp_path):
    kind, classes, names, _ = write_protocol(tmp_path, "ade20k")
    Image.fromarray(image_of(2, 3)).save(tmp_path / names[1])
    with pytest.raises(ValueError, match=r"must have one whole number per pixel.*\(2, 3, 3\)"):
        open_segmentation_dataset(f"{kind}:{tmp_path}", num_classes=classes).samples[0]
    assert to_classes(np.array([[[-100], [1]]]), {-100: IGNORED, 0: 0, 1: 1}, "x").tolist() == [[IGNORED, 1]]


def test_palette_images_are_read_as_indices(tmp_path):
    kind, classes, names, _ = write_protocol(tmp_path, "pascal-60")
    image = Image.fromarray(np.array([[0, 59]], dtype=np.uint8), mode="P")
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / names[1])
    label = open_segmentation_dataset(f"{kind}:{tmp_path}", num_classes=classes).samples[0]["label"]
    assert label.tolist() == [[0, 59]]


def make_table(values):
    images = [Image.fromarray(image_of(4, 6, seed=i)) for i in range(len(values))]
    labels = [Image.fromarray(np.asarray(value, dtype=np.uint8)) for value in values]
    table = datasets.Dataset.from_dict({"photo": images, "classes": labels})
    return table.cast_column("photo", datasets.Image()).cast_column("classes", datasets.Image())


def test_tables_of_the_datasets_library(tmp_path):
    values = [np.full((4, 6), i) for i in (0, 2, 255)]
    make_table(values).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "images" / "test"
    folder.mkdir(parents=True)
    lines = ["photo_file_name,classes_file_name"]
    for i, value in enumerate(values):
        Image.fromarray(image_of(4, 6, seed=i)).save(folder / f"{i}.png")
        Image.fromarray(value.astype(np.uint8)).save(folder / f"{i}_label.png")
        lines.append(f"{i}.png,{i}_label.png")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    options = {"num_classes": 3, "columns": ("photo", "classes")}
    for name in ("saved", "images"):
        dataset = open_segmentation_dataset(str(tmp_path / name), **options)
        samples = [dataset.samples[i] for i in range(len(dataset.samples))]
        assert [sample["label"].unique().tolist() for sample in samples] == [[0], [2], [IGNORED]]
        np.testing.assert_array_equal(samples[1]["image"], image_of(4, 6, seed=1))
        assert dataset.ignored == "255"
    saved = str(tmp_path / "saved")
    reduced = open_segmentation_dataset(saved, first_ignored=True, **options)
    assert [reduced.samples[i]["label"].unique().item() for i in range(3)] == [IGNORED, 1, IGNORED]
    with pytest.raises(ValueError, match=r"row 2 of .*saved holds the value 255, .* values are 0 to 2, 254"):
        open_segmentation_dataset(saved, ignored=(254,), **options).samples[2]
    with pytest.raises(ValueError, match="label value 2 cannot be ignored, since it is one of the 3 classes"):
        open_segmentation_dataset(saved, ignored=(2,), **options)
    with pytest.raises(ValueError, match=r"no column 'label'; it has photo, classes; choose with --label-column"):
        open_segmentation_dataset(saved, num_classes=3, columns=("photo", "label"))


def test_rows_that_cannot_be_read_are_named(tmp_path):
    table = make_table([np.zeros((4, 6)), np.zeros((4, 6))])
    rows = table.cast_column("photo", datasets.Image(decode=False))[:]
    rows["photo"][1]["bytes"] = rows["photo"][1]["bytes"][:60]
    broken = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    broken.cast_column("classes", datasets.Image()).save_to_disk(tmp_path / "saved")
    options = {"num_classes": 3, "columns": ("photo", "classes")}
    dataset = open_segmentation_dataset(str(tmp_path / "saved"), **options)
    assert dataset.samples[0]["label"].shape == (4, 6)
    with pytest.raises(UnreadableError, match=r"row 1 of \S+saved cannot be read"):
        dataset.samples[1]


def test_scenes_carry_their_classes():
    dataset = open_segmentation_dataset(num_classes=19, limit=2, size=(24, 32))
    sample = dataset.samples.__getitems__([1])[0]
    assert sample["label"].shape == (24, 32)
    assert sample["label"].unique().numel() > 2
    assert dataset.class_names[:3] == ("floor", "ceiling", "wall")
    other = open_segmentation_dataset("scenes:any", num_classes=19, limit=2, size=(24, 32))
    assert torch.equal(other.samples[1]["label"], sample["label"])
    assert (other.samples[1]["image"] != sample["image"]).any()
    assert other.name == "scenes of any materials (test, seed 0)"
    with pytest.raises(ValueError, match="'scenes' has 19 classes, but the model has 150"):
        open_segmentation_dataset(num_classes=150)
    with pytest.raises(ValueError, match="Unknown materials 'wood'"):
        open_segmentation_dataset("scenes:wood", num_classes=19)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("screens", "'screens' is neither known nor a folder; use scenes, scenes:any, ade20k:DIR"),
        ("ade:here", "layout 'ade' must be one of ade20k, cityscapes, pascal_context59, pascal_context60"),
        ("pascal_context59:/no/such", "'/no/such' does not exist; expected JPEGImages"),
        ("cityscapes:/no/such", "'/no/such' does not exist; expected leftImg8bit/val"),
    ],
)
def test_unknown_datasets(specification, message):
    with pytest.raises(ValueError, match=message):
        open_segmentation_dataset(specification, num_classes=19)


# Report and pictures


def make_panel(truth=True, size=(16, 24), classes=3):
    maps = [torch.from_numpy(np.random.default_rng(seed).integers(0, classes, size)) for seed in range(3)]
    return Panel(image_of(*size), maps[0], maps[1], torch.arange(6).reshape(2, 3), maps[2] if truth else None)


def test_disagreement_says_who_is_right():
    truth = torch.tensor([[0, 0, 0, 0, IGNORED]])
    dense, fast = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 0, 2, 2]])
    panel = Panel(image_of(1, 5), dense, fast, torch.zeros(1, 1), truth)
    kinds, names = differences(panel)
    assert kinds.tolist() == [[-1, 0, 1, 2, 3]]
    assert names is DIFFERENCES
    panel.truth = None
    assert differences(panel)[0].tolist() == [[-1, 0, 0, 0, 0]]


def test_every_class_has_its_own_colour():
    assert class_colours(3, [2, 0]) == {c: colour for c, colour in class_colours(28, range(28)).items() if c in (0, 2)}
    assert len(set(class_colours(150, range(150)).values())) == 150
    panel = make_panel()
    panel.truth[:] = 2
    panel.dense[:] = 2
    assert by_area([panel])[0] == 2


def test_picture(tmp_path):
    names = ["sky", "road", "tree"]
    path = draw_segmentation([make_panel(), make_panel()], tmp_path / "a.png", names, heading="title")
    with Image.open(path) as picture:
        # Six columns; the legend has one line for the classes and three for the differences.
        assert picture.size[0] == pytest.approx(200 * (6 * 1.75 * (3 / 2) ** 0.5 + 7 * 0.06), abs=2)
        seen = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    for colour in (*PALETTE[:3], *list(DIFFERENCES.values())[:3]):
        assert tuple(bytes.fromhex(colour[1:])) in seen
    assert tuple(bytes.fromhex(PALETTE[3][1:])) not in seen
    path = draw_segmentation(
        [make_panel(truth=False, classes=60)], tmp_path / "b.png", [f"class {i}" for i in range(60)]
    )
    with Image.open(path) as picture:
        assert picture.size[0] == pytest.approx(200 * (5 * 1.75 * (3 / 2) ** 0.5 + 6 * 0.06), abs=2)


def make_result(classes):
    def row(name, kind, group, iou):
        metrics = {"miou": iou, "kept": iou / 0.8, "mean_accuracy": 0.9, "pixel_accuracy": 0.95}
        ends = {"miou": (iou - 0.1, iou + 0.1), **({} if kind == "dense" else {"kept": (0.5, 0.75)})}
        seconds = {"median": 0.1, "p10": 0.1, "p90": 0.1}
        values = {f"c{i}": None if i == 1 else iou - i / 100 * group for i in range(classes)}
        return Row(name, kind, None, (8, 8), metrics, 2.0, 0.5, 80.0, 1.5, seconds, group, ends, values)

    rows = [row("dense", "dense", 0, 0.8), row("clusters 3x3 after 1, soft", "clusters", 1, 0.5)]
    rows.append(row("clusters 3x3 after 1, delta", "clusters", 1, 0.6))
    environment = {"machine": {"processor": "x", "device": "cpu", "threads": 1}, "versions": {}}
    options = {"batch_size": 8, "dtype": "float32"}
    return Result("image-segmentation", "a/model", "scenes", 7, 1, {}, options, environment, rows)


def test_table_has_intervals_and_the_best_row_is_shown(tmp_path):
    result = make_result(3)
    lines = to_markdown(result).splitlines()
    assert lines[0].startswith("| model | mIoU ↑ | 95 % | kept % ↑ | 95 % | mAcc ↑ | aAcc ↑ |")
    assert lines[2].startswith("| dense | 0.8000 | 0.700-0.900 | 100.0 |  | 0.9000 | 0.9500 |")
    assert lines[4].startswith("| clusters 3x3 after 1, delta | 0.6000 | 0.500-0.700 | 75.0 | 50.0-75.0 |")
    assert "bootstrap over images" in lines[-1]
    assert result.row_to_show() == 2
    result.skipped = ["a.jpg cannot be read (truncated)"]
    assert "1 images were skipped: a.jpg cannot be read (truncated)" in to_markdown(result)
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    # A dense model that finds nothing: what others keep of it is no number, and JSON has none for that.
    result.rows[1].metrics["kept"], result.rows[1].intervals["kept"] = math.nan, (math.nan, math.inf)
    result.save(tmp_path / "r.json")
    assert "NaN" not in (tmp_path / "r.json").read_text()
    row = Result.load(tmp_path / "r.json").rows[1]
    assert math.isnan(row.metrics["kept"])
    assert math.isnan(row.intervals["kept"][1])


def test_class_table_shows_all_of_few_classes_and_the_worst_of_many():
    def printed(result):
        with (console := Console(width=120)).capture() as capture:
            console.print(to_class_table(result))
        return " ".join(capture.get().split())

    few = printed(make_result(3))
    assert "c0" in few
    assert "c1" not in few  # it does not occur
    assert "soft" in few
    many = printed(make_result(30))
    assert "the 20 of 29 classes that lose most" in many
    assert "c29" in many
    assert "c2 " not in many
