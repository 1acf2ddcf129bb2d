"""The panoptic parts of `hf_tokaccel.evaluation` by themselves, against numbers worked out by hand or by loops."""

import json
import math
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EomtImageProcessor, Mask2FormerImageProcessor

from hf_tokaccel.evaluation import PanopticMetric, UnreadableError
from hf_tokaccel.evaluation.cluster_pictures import draw_views, sayings
from hf_tokaccel.evaluation.panoptic.data import match_categories, open_panoptic_dataset
from hf_tokaccel.evaluation.panoptic.pictures import comparable, draw_panoptic, paired
from hf_tokaccel.evaluation.panoptic.task import PanopticProtocol, PanopticTask
from hf_tokaccel.evaluation.pictures import Panel
from hf_tokaccel.evaluation.segmentation.pictures import differences
from hf_tokaccel.evaluation.showing import View
from hf_tokaccel.hosts.layout import TokenLayout, WindowLayout, WindowSequenceLayout
from hf_tokaccel.measure.metrics.panoptic import (
    CROWD,
    STEP,
    VOID,
    align,
    classes_of,
    code,
    image_sums,
    metrics_from_sums,
    segment_map,
)
from hf_tokaccel.scenes import CLASS_NAMES

A, B, C = (code(1, n) for n in (1, 2, 3))  # three segments of class 1
OTHER, CROWD_OF_1, CROWD_OF_2 = code(2, 1), code(1, CROWD), code(2, CROWD)


def line(*runs):
    """A map of one row from pairs of a code and its number of pixels."""
    return torch.tensor([[value for value, count in runs for _ in range(count)]])


def counts(prediction, truth, classes=3):
    """Summed IoU, true positives, false positives, false negatives of each class."""
    sums = image_sums(prediction, truth, classes)
    assert sums[-1] == 1
    return sums[:-1].view(4, classes)


# Metrics


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        # Numbers of segments mean nothing.
        (line((B, 4), (OTHER, 2)), line((A, 4), (OTHER, 2)), {1: (1, 1, 0, 0), 2: (1, 1, 0, 0)}),
        # An IoU of exactly one half, 2 of 4 pixels, is no match; 3 of 5 are.
        (line((VOID, 1), (A, 3)), line((A, 3), (OTHER, 1)), {1: (0, 0, 1, 1), 2: (0, 0, 0, 1)}),
        (line((VOID, 1), (A, 4)), line((A, 4), (OTHER, 1)), {1: (0.6, 1, 0, 0), 2: (0, 0, 0, 1)}),
        # Void pixels of the truth are not part of the union.
        (line((VOID, 1), (A, 3)), line((A, 3), (VOID, 1)), {1: (2 / 3, 1, 0, 0)}),
        # The same segment in another class is wrong and missed.
        (line((OTHER, 4)), line((A, 4)), {1: (0, 0, 0, 1), 2: (0, 0, 1, 0)}),
        # Segments of which more than half is void do not count; of exactly one half they do.
        (line((VOID, 5), (B, 3)), line((A, 5), (OTHER, 1), (VOID, 2)), {1: (0, 0, 0, 1), 2: (0, 0, 0, 1)}),
        (line((VOID, 5), (B, 4)), line((A, 5), (OTHER, 2), (VOID, 2)), {1: (0, 0, 1, 1), 2: (0, 0, 0, 1)}),
        # Likewise of crowds of their own class, which nobody has to find; those of another class are no excuse.
        (line((A, 3), (OTHER, 1)), line((CROWD_OF_1, 2), (OTHER, 2)), {2: (0, 0, 1, 1)}),
        (line((A, 3), (VOID, 1)), line((CROWD_OF_2, 2), (OTHER, 2)), {1: (0, 0, 1, 0), 2: (0, 0, 0, 1)}),
        (line((VOID, 4)), line((CROWD_OF_1, 4)), {}),
        # Void and crowd excuse together.
        (line((A, 4)), line((CROWD_OF_1, 1), (VOID, 2), (OTHER, 1)), {2: (0, 0, 0, 1)}),
        # A segment on a crowd alone never matches it, and two of them are two excused ones.
        (line((A, 2), (B, 2)), line((CROWD_OF_1, 4)), {}),
    ],
)
def test_rules_of_panoptic_quality(prediction, truth, expected):
    found = counts(prediction, truth)
    for index in range(3):
        assert found[:, index].tolist() == pytest.approx(expected.get(index, (0, 0, 0, 0)))


def quality_by_loops(pairs, classes):
    """Panoptic quality and its factors per class, pixel by pixel and segment by segment."""
    iou, hits, wrong, missed = (np.zeros(classes) for _ in range(4))
    for prediction, truth in pairs:
        pixels = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
        found, true = ({pair[side] for pair in pixels} - {VOID} for side in (0, 1))
        matched_found, matched_true = set(), set()
        for t in true:
            for p in found:
                if p // STEP != t // STEP or t % STEP == CROWD:
                    continue
                both = sum(pair == (p, t) for pair in pixels)
                union = sum(p == a or t == b for a, b in pixels) - sum(pair == (p, VOID) for pair in pixels)
                if both / union > 0.5:
                    iou[t // STEP] += both / union
                    hits[t // STEP] += 1
                    matched_found.add(p)
                    matched_true.add(t)
        for t in true - matched_true:
            missed[t // STEP] += t % STEP != CROWD
        for p in found - matched_found:
            area = sum(a == p for a, _ in pixels)
            excused = sum(a == p and b in (VOID, code(p // STEP, CROWD)) for a, b in pixels)
            wrong[p // STEP] += excused / area <= 0.5
    quality = [
        (i / (h + w / 2 + m / 2), i / h if h else 0, h / (h + w / 2 + m / 2)) if h + w + m else None
        for i, h, w, m in zip(iou, hits, wrong, missed, strict=True)
    ]
    return quality


def random_pair(rng, size=(12, 10), classes=5):
    """Blocks of segments, void and crowds; a prediction that is right on most of them, with ragged edges."""
    codes = [VOID, *(code(c, n) for c in range(classes) for n in range(3))]
    truth = np.kron(rng.choice(codes, (size[0] // 3, size[1] // 2)), np.ones((3, 2), dtype=np.int64))
    renumbered = np.where(truth == VOID, code(4, 9), np.where(truth % STEP == CROWD, truth + 7, truth))
    noise = rng.choice([VOID, *(code(c, n) for c in range(classes - 1) for n in (1, 2))], truth.shape)
    return torch.from_numpy(np.where(rng.random(truth.shape) < 0.85, renumbered, noise)), torch.from_numpy(truth)


def test_quality_agrees_with_counting_pixels_and_does_not_depend_on_the_split():
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng) for _ in range(6)]
    sums = torch.stack([image_sums(*pair, 6) for pair in pairs])  # class 5 does not occur
    things = (True, True, False, False, True, False)
    metrics = metrics_from_sums(sums.sum(0), things)
    expected = quality_by_loops([[m.numpy() for m in pair] for pair in pairs], 6)
    assert expected[5] is None
    assert metrics["pq_of"][5].isnan()
    assert 0.1 < metrics["pq"] < 0.9
    for part, chosen in (("", range(6)), ("_things", (0, 1, 4)), ("_stuff", (2, 3, 5))):
        known = [expected[c] for c in chosen if expected[c] is not None]
        found = [metrics[f"{name}{part}"].item() for name in ("pq", "sq", "rq")]
        assert found == pytest.approx(np.mean(known, 0).tolist(), rel=1e-12)
    assert metrics["pq_of"][:5].tolist() == pytest.approx([e[0] for e in expected[:5]], rel=1e-12)
    both = metrics_from_sums(torch.stack([sums.sum(0), sums[0]]), things)
    assert both["pq"][0] == metrics["pq"]


def test_quality_is_nothing_where_classes_do_not_occur():
    metrics = metrics_from_sums(image_sums(line((OTHER, 4)), line((A, 4)), 3), (True, True, True))
    assert (metrics["pq"], metrics["sq"], metrics["rq"]) == (0, 0, 0)  # two classes without a match
    assert metrics["pq_stuff"].isnan()
    assert metrics["pq_of"].isnan().tolist() == [True, False, False]
    assert not image_sums(line((A, 4)), line((VOID, 4)), 3).any()


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (line((A, 1)), line((code(3, 1), 1)), "label holds class 3, which must be from 0 to 2, or -1 for void"),
        (line((code(4, 1), 1)), line((A, 1)), "prediction holds class 4"),
        (line((-STEP - 1, 1)), line((A, 1)), "prediction holds class -2"),
        (line((A, 1)), line((A, 2)), r"prediction of shape \(1, 1\) must have the shape of its label, \(1, 2\)"),
    ],
)
def test_maps_that_do_not_fit(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        image_sums(prediction, truth, 3)


def test_metric_class_works_offline_and_combines():
    rng = np.random.default_rng(1)
    pairs = [random_pair(rng, size) for size in ((6, 4), (9, 8))]
    arguments = {"predictions": [p.numpy() for p, _ in pairs], "references": [t.numpy() for _, t in pairs]}
    things = [True, False, True, False, True]
    metrics = PanopticMetric().compute(**arguments, things=things)
    expected = quality_by_loops([[m.numpy() for m in pair] for pair in pairs], 5)
    known = [e for e in expected if e is not None]
    assert metrics["pq"] == pytest.approx(np.mean(known, 0)[0])
    assert [math.isnan(value) for value in metrics["pq_of"]] == [e is None for e in expected]
    combined = evaluate.combine({"panoptic": PanopticMetric()}).compute(**arguments, things=things)
    assert combined["pq"] == metrics["pq"]


# Maps of segments


def test_segment_maps_and_alignment():
    ids = torch.tensor([[7, 7, 0, 300]])
    codes = segment_map(ids, {7: A, 300: OTHER})
    assert codes.tolist() == [[A, A, VOID, OTHER]]
    assert classes_of(codes).tolist() == [[1, 1, VOID, 2]]
    aligned = align(line((C, 3), (OTHER, 2), (VOID, 1)), line((A, 4), (B, 2)))
    assert aligned[0, :3].tolist() == [A, A, A]
    assert classes_of(aligned)[0, 3:].tolist() == [2, 2, VOID]
    assert aligned[0, 3] % STEP > 1000  # a number that no segment of the reference has


def panel_of(dense, accelerated, truth):
    image = np.zeros((*dense.shape, 3), dtype=np.uint8)
    return Panel(image, dense, accelerated, torch.zeros(1, 1, dtype=torch.long), truth)


def test_differences_are_between_segments_not_their_numbers():
    truth = line((A, 3), (B, 3), (OTHER, 3))
    same = line((B, 3), (C, 3), (OTHER, 3))  # other numbers
    merged = line((A, 6), (OTHER, 3))
    panel = comparable(paired(panel_of(same, same + 3, truth)))
    assert (differences(panel)[0] == -1).all()
    kinds, _ = differences(comparable(paired(panel_of(same, merged, truth))))
    assert kinds.tolist() == [[0] * 6 + [-1] * 3]  # two objects as one: only the dense model is right
    kinds, _ = differences(comparable(paired(panel_of(merged, same, truth))))
    assert kinds.tolist() == [[1] * 6 + [-1] * 3]
    kinds, _ = differences(comparable(paired(panel_of(merged, same, None))))
    assert kinds.tolist() == [[0] * 6 + [-1] * 3]


def test_figure(tmp_path):
    rng = np.random.default_rng(0)
    prediction, truth = random_pair(rng, (30, 30))
    image = rng.integers(0, 255, (30, 30, 3), dtype=np.uint8)
    labels = torch.arange(12).view(3, 4)
    panel = Panel(image, prediction, prediction.roll(1, 1), labels, truth)
    path = draw_panoptic([panel], tmp_path / "a.png", [f"class {i}" for i in range(5)], heading="title")
    with Image.open(path) as picture:
        assert picture.size[0] == pytest.approx(200 * (6 * 1.75 + 7 * 0.06), abs=2)
        assert len(np.unique(np.array(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_figures_of_an_image_where_no_segment_passes(tmp_path):
    nothing = torch.full((30, 40), VOID)
    panel = Panel(np.zeros((30, 40, 3), dtype=np.uint8), nothing, nothing, torch.arange(12).view(3, 4), None)
    assert draw_panoptic([panel], tmp_path / "a.png", ["class 0"]).is_file()
    task = SimpleNamespace(name="panoptic-segmentation", protocol=PanopticProtocol(("class 0",), (True,)))
    view = View("clusters", panel, 1.0, 0.5, None)
    assert sayings(task, [view]) == ["50 % of the GFLOPs; the dense model finds no segment"]
    draw_views(task, [view], tmp_path / "b.png", "title")
    assert (tmp_path / "b.png").is_file()


@pytest.mark.parametrize("layout", [WindowLayout((5, 7), 3), WindowSequenceLayout((5, 7), 3)])
def test_labels_of_windows_become_one_map(layout):
    labels = torch.randint(0, 4, (12, 3, 3), generator=torch.Generator().manual_seed(0))  # 2 images of 2 x 3 windows
    labels[0, 0, 0] = 3
    whole = layout.assemble(labels)
    assert whole.shape == (2, 5, 7)
    for image in range(2):
        for y in range(5):
            for x in range(7):
                window = y // 3 * 3 + x // 3
                assert whole[image, y, x] == labels[6 * image + window, y % 3, x % 3] + 4 * window
    assert TokenLayout((3, 3)).assemble(labels) is labels


# Data sets


CATEGORIES = [
    {"id": 92, "name": "Tree_merged", "isthing": 0},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 7, "name": "car", "isthing": 1},
]
LABELS = ("person", "car", "tree merged")
SEGMENTS = [
    {"id": 70_000, "category_id": 92, "iscrowd": 0},
    {"id": 5, "category_id": 7, "iscrowd": 0},
    {"id": 300, "category_id": 7, "iscrowd": 1},
]
IDS = np.array([[70_000, 70_000, 0], [5, 300, 300]])


def write(root, kind="coco", ids=IDS, segments=SEGMENTS, **parts):
    """One image with its segments as COCO or ADE20K store them; returns the JSON, PNG and image files."""
    paths = {
        "coco": ("annotations/panoptic_val2017.json", "annotations/panoptic_val2017/7.png", "val2017/7.jpg"),
        "ade20k": ("ade20k_panoptic_val.json", "ade20k_panoptic_val/7.png", "images/validation/7.jpg"),
    }[kind]
    index, png, image = (root / path for path in paths)
    for path in (index, png, image):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}],
        "annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    index.write_text(json.dumps(content | parts))
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)).save(png)
    Image.fromarray(np.zeros((*ids.shape, 3), dtype=np.uint8)).save(image)
    return index, png, image


@pytest.mark.parametrize("kind", ["coco", "ade20k"])
def test_layouts(tmp_path, kind):
    _, _, image = write(tmp_path, kind)
    dataset = open_panoptic_dataset(f"{kind}:{tmp_path}", labels=LABELS)
    assert len(dataset.samples) == 1
    sample = dataset.samples[0]
    tree, car, crowd = code(2, 1), code(1, 2), code(1, CROWD)
    assert sample["label"].tolist() == [[tree, tree, VOID], [car, crowd, crowd]]
    assert (sample["name"], sample["image"].shape) == (str(image), (2, 3, 3))
    assert (dataset.things, dataset.class_names) == ((True, True, False), LABELS)
    with pytest.raises(ValueError, match=r"has no file .*hidden.json; expected"):
        open_panoptic_dataset(f"{kind}:{tmp_path}", labels=LABELS, split="hidden")


def test_categories_pair_by_name_or_by_order():
    assert match_categories(CATEGORIES, LABELS, "names", "f") == {92: 2, 1: 0, 7: 1}
    assert match_categories(CATEGORIES, ("LABEL_0", "LABEL_1", "LABEL_2"), "order", "f") == {1: 0, 7: 1, 92: 2}
    cases = [
        (("person", "bus", "tree merged"), "names", r"2 categories do not match.*'car' is not among.*model's 'bus'"),
        (("person", "car"), "names", "f: 1 categories do not match the model: 'tree merged' is not among the model's"),
        (("person", "car"), "order", "f has 3 categories, but the model has 2 classes"),
        (("car", "Car", "person"), "names", "the model has two categories called 'car'"),
        (LABELS, "index", "match='index' must be one of names, order"),
    ]
    for labels, match, message in cases:
        with pytest.raises(ValueError, match=message):
            match_categories(CATEGORIES, labels, match, "f")
    with pytest.raises(ValueError, match="f has two categories of one id"):
        match_categories([CATEGORIES[0]] * 3, LABELS, "names", "f")


ANNOTATION = {"image_id": 7, "file_name": "7.png", "segments_info": SEGMENTS}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"annotations": []}, "val2017.json has no list of 'annotations'; give a panoptic file"),
        (
            {"annotations": [{"image_id": 7, "file_name": "7.png"}]},
            "entry 0 of 'annotations' has no valid 'segments_info'",
        ),
        ({"categories": [{"id": 1, "name": "a"}]}, "entry 0 of 'categories' has no valid 'isthing'"),
        ({"annotations": [ANNOTATION | {"image_id": 8}]}, "no image has the id 8; image 7.jpg has no annotation"),
        ({"annotations": [ANNOTATION] * 2}, "image 7.jpg has two annotations"),
        ({"segments": [{"id": 0, "category_id": 1}]}, "7.png: segment id 0 must be from 1 to 16777215"),
        ({"segments": [{"id": 5, "category_id": 2}]}, "7.png: segment 5 is of category 2, which is not in 'cat"),
        ({"segments": [SEGMENTS[0]] * 2}, "7.png: segment 70000 occurs twice"),
        ({"segments": {"id": 1}}, "7.png: its segments_info is no list of segments"),
        ({"images": [{"id": 7, "file_name": "8.jpg"}]}, r"1 images that .*json names are missing: .*val2017/8.jpg"),
        (
            {"annotations": [ANNOTATION | {"file_name": "9.png"}]},
            r"1 PNG files of segments that .*json names are missing: .*val2017/9.png",
        ),
    ],
)
def test_mistakes_in_the_json_file(tmp_path, parts, message):
    write(tmp_path, **parts)
    with pytest.raises(ValueError, match=message):
        open_panoptic_dataset(f"coco:{tmp_path}", labels=LABELS)


def test_mistakes_in_files(tmp_path):
    index, png, image = write(tmp_path, segments=SEGMENTS[:2])
    dataset = open_panoptic_dataset(f"coco:{tmp_path}", labels=LABELS)
    with pytest.raises(ValueError, match=r"7.png: segment 300 in the image is not in the JSON file"):
        dataset.samples[0]
    write(tmp_path, ids=np.where(IDS == 5, 0, IDS))
    dataset = open_panoptic_dataset(f"coco:{tmp_path}", labels=LABELS)
    with pytest.raises(ValueError, match=r"7.png: segment 5 in the JSON file has no pixel") as caught:
        dataset.samples[0]
    assert not isinstance(caught.value, UnreadableError)  # never skipped
    Image.fromarray(IDS.astype(np.uint8)).save(png)
    with pytest.raises(ValueError, match=r"7.png must be an RGB image, but its pixels have shape \(2, 3\)"):
        dataset.samples[0]
    write(tmp_path)
    for path in (png, image):
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(UnreadableError, match=rf"{path.name} cannot be read"):
            dataset.samples[0]
        write(tmp_path)
    index.write_text(index.read_text()[:40])
    with pytest.raises(ValueError, match=r"val2017.json cannot be read as JSON .*unpack it again"):
        open_panoptic_dataset(f"coco:{tmp_path}", labels=LABELS)


def test_folders_that_are_not_there(tmp_path):
    cases = {
        "coco:/no/such": "'/no/such' does not exist; expected panoptic_val2017.json",
        "voc:x": "'voc:x' is not known",
    }
    cases[f"ade20k:{tmp_path}"] = r"has no file ade20k_panoptic_val.json; expected .*images/validation/NAME.jpg"
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            open_panoptic_dataset(name, labels=LABELS)
    index, png, image = write(tmp_path)
    image.unlink()
    image.parent.rmdir()
    with pytest.raises(ValueError, match=r"has no folder val2017; expected"):
        open_panoptic_dataset(f"coco:{tmp_path}", labels=LABELS)
    png.unlink()
    png.parent.rmdir()
    index.with_suffix(".zip").touch()
    with pytest.raises(ValueError, match=r"has no folder panoptic_val2017; unpack .*panoptic_val2017.zip"):
        open_panoptic_dataset(f"coco:{tmp_path}", labels=LABELS)


def test_scenes_have_segments_of_objects_and_surfaces():
    dataset = open_panoptic_dataset("scenes", labels=CLASS_NAMES, limit=4, size=(48, 64))
    samples = dataset.samples.__getitems__([0, 1, 2, 3])
    assert samples[2]["image"].shape == (48, 64, 3)
    assert torch.equal(dataset.samples[2]["label"], samples[2]["label"])
    codes = torch.cat([sample["label"].flatten() for sample in samples]).unique()
    assert (codes % STEP > 0).all()  # neither void nor crowds
    stuff = classes_of(codes) < 7
    assert (codes[stuff] % STEP == 1).all()
    assert (codes[~stuff] % STEP).max() > 1
    assert dataset.things == (False,) * 7 + (True,) * 12
    with pytest.raises(
        ValueError, match=r"'scenes' has the 19 classes floor, ceiling, wall, \.\.\., but the model has 3"
    ):
        open_panoptic_dataset("scenes", labels=LABELS)


# The task


def query_outputs(regions, size, classes=4):
    """Logits of queries that are sure of their class and of their region, slices of rows and columns."""
    logits, masks = torch.full((1, len(regions), classes + 1), -8.0), torch.full((1, len(regions), *size), -8.0)
    for index, (class_index, rows, columns) in enumerate(regions):
        logits[0, index, class_index] = 8
        masks[0, index, rows, columns] = 8
    return logits, masks


def make_task(processor=None, things=(False, False, True, True), **protocol):
    processor = processor or Mask2FormerImageProcessor(size={"height": 32, "width": 32}, size_divisor=32)
    return PanopticTask(processor, PanopticProtocol(("a", "b", "c", "d"), things, **protocol))


def test_stuff_is_fused_and_things_keep_segments_of_their_own():
    """With `label_ids_to_fuse`, Transformers would give the last thing the id of the first."""
    top, left, right = slice(0, 8), slice(0, 4), slice(12, 16)
    regions = [(0, top, left), (2, top, slice(4, 8)), (0, top, right), (2, top, slice(8, 12))]
    regions += [(1, slice(8, 16), slice(0, 16))]
    outputs = query_outputs(regions, (16, 16))
    item = {"pixel_values": torch.zeros(3, 16, 16), "valid": (16, 16), "size": (16, 16)}
    for processor in (None, EomtImageProcessor(size={"shortest_edge": 16, "longest_edge": 16}, do_pad=True)):
        (found,) = make_task(processor).decode(outputs, [item])
        assert classes_of(found[0, [1, 6, 10, 14]]).tolist() == [0, 2, 2, 0]
        assert found[0, 1] == found[0, 14]
        assert found[0, 6] != found[0, 10]
        assert len(found.unique()) == 4


def test_padding_is_cut_off_before_masks_are_stretched():
    sizes = {"size": {"height": 32, "width": 64}, "pad_size": {"height": 64, "width": 64}}
    task = make_task(Mask2FormerImageProcessor(**sizes))
    item = task.encode({"image": np.zeros((20, 32, 3), dtype=np.uint8), "label": torch.zeros(20, 32).long()})
    assert (tuple(item["pixel_values"].shape), item["valid"], item["size"]) == ((3, 64, 64), (32, 64), (20, 32))
    outputs = query_outputs([(0, slice(0, 4), slice(0, 16)), (1, slice(4, 16), slice(0, 16))], (16, 16))
    (found,) = task.decode(outputs, [item])
    # The border after 4 of 16 rows is that after 16 of 64 pixels, so half of the 32 that are the image.
    assert (classes_of(found)[:9] == 0).all()
    assert (classes_of(found)[11:] == 1).all()


def test_thresholds_are_those_of_the_processor_unless_told_otherwise():
    assert make_task().protocol.to_dict()["threshold"] == 0.5
    assert make_task(EomtImageProcessor()).protocol.to_dict()["threshold"] == 0.8
    strict = make_task(threshold=0.99, overlap=0.3)
    assert (strict.options["threshold"], strict.options["overlap_mask_area_threshold"]) == (0.99, 0.3)
    logits, masks = query_outputs([(0, slice(0, 16), slice(0, 16))], (16, 16))
    item = {"pixel_values": torch.zeros(3, 16, 16), "valid": (16, 16), "size": (16, 16)}
    logits[0, 0, 1] = 7  # a score of 0.73
    assert (make_task().decode((logits, masks), [item])[0] == code(0, 1)).all()
    assert (strict.decode((logits, masks), [item])[0] == VOID).all()
    for name, value in (("threshold", 1.0), ("overlap", -0.1)):
        with pytest.raises(ValueError, match=rf"{name}={value} must be at least 0 and below 1, for example"):
            make_task(**{name: value})
    with pytest.raises(ValueError, match="SimpleNamespace makes no panoptic segmentation"):
        make_task(SimpleNamespace())


def test_summaries_have_intervals_and_classes():
    task = make_task()
    perfect, half = counts(line((A, 4)), line((A, 4)), 4), counts(line((VOID, 1), (A, 3)), line((A, 4)), 4)
    images = [
        torch.stack([torch.cat([s.flatten(), torch.ones(1)]) for s in row])
        for row in ((perfect,) * 3, (half, perfect, half))
    ]
    dense, fast = task.summarise(torch.stack(images))
    assert dense.metrics["pq"] == dense.metrics["kept"] == 1
    assert "kept" not in dense.intervals
    assert fast.metrics["pq"] == pytest.approx((0.75 + 1 + 0.75) / 3)
    assert fast.intervals["kept"] == pytest.approx((0.75, 1))
    assert math.isnan(fast.metrics["pq_things"])
    assert fast.classes == {"a": None, "b": pytest.approx(2.5 / 3), "c": None, "d": None}
