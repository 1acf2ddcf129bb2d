"""`examples/evaluate_instances.py` from end to end on tiny random models, and its parts."""

import json
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scripts import load_main, run_one_and_two
from test_deimv2 import TINY as DEIMV2
from test_evaluate_panoptic import awaken_queries, tiny_eomt, tiny_maskformer, tiny_oneformer
from test_evaluate_panoptic import save as save_with
from test_mask2former import BACKBONE
from test_mask2former import TINY as MASK2FORMER
from test_rf_detr import SMALL, TINY
from test_swin import awaken
from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    OneFormerProcessor,
    ResNetConfig,
    RfDetrConfig,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
    RfDetrImageProcessor,
    RTDetrImageProcessor,
    ViTConfig,
)

import hf_tokaccel as ta
from hf_tokaccel.evaluation import Result
from hf_tokaccel.evaluation.instances.data import check_mask, encode_mask, match_categories, open_instance_dataset
from hf_tokaccel.evaluation.instances.pictures import Instances, count_matches
from hf_tokaccel.evaluation.instances.task import InstanceProtocol, InstanceTask, corners_of
from hf_tokaccel.measure.metrics.coco import STATISTICS, ImageRecord, average_precision
from hf_tokaccel.scenes import CLASS_NAMES

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_instances.py"
ACCEL = "cluster_after=2,cluster_grid=2x2,neighbors=2"
LABELS = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}
CATEGORIES = {3: "ball", 5: "cup", 9: "plant"}


def mask2former(**labels):
    torch.manual_seed(0)
    sizes = {**MASK2FORMER, "num_queries": 12, "init_std": 0.3, "backbone_config": dict(BACKBONE)}
    sizes.pop("num_labels")
    return awaken(Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**sizes, **labels))).eval()


def rf_detr(model_class, **labels):
    torch.manual_seed(0)
    sizes = {**SMALL, "backbone_config": {"model_type": "rf_detr_dinov2", **TINY}}
    sizes.pop("num_labels")
    return model_class(RfDetrConfig(**sizes, **labels)).eval()


def save(model, folder):
    model.save_pretrained(folder)
    side = 32 if "RfDetr" in type(model).__name__ else 64  # the last stage needs more than one token
    size = {"height": side, "width": side}
    if "RfDetr" in type(model).__name__:
        RfDetrImageProcessor(size=size).save_pretrained(folder)
    else:
        Mask2FormerImageProcessorPil(size=size, size_divisor=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save(mask2former(**LABELS), tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def main():
    return load_main(SCRIPT)


@pytest.fixture
def evaluate(main, model_folder, tmp_path):
    """Runs the script and returns its result; the model is the tiny one unless another is named."""

    def run(*arguments):
        model = () if "--model" in arguments else ("--model", str(model_folder))
        options = ["--cpu", "--rounds", "1", "--limit", "3", "--pictures", "1", "--output", str(tmp_path / "out")]
        assert main([*model, *options, *arguments]) == 0
        return Result.load(tmp_path / "out" / "result.json")

    return run


def quality(result):
    names = sorted(name for name in result.rows[0].metrics if "ap" in name)
    return np.array([[row.metrics[name] for name in names] for row in result.rows])


def made_up(generator, masks=True):
    """Records with objects of several sizes, and detections that are shifted copies of them or made up."""
    records = []
    for _ in range(6):
        truth, found = [], {"box": [], "mask": []}
        for number in range(5):
            side = int(generator.integers(6, 110))
            x, y = (int(v) for v in generator.integers(0, 200 - side, 2))
            category = int(generator.choice(list(CATEGORIES)))
            mask = np.zeros((200, 200), dtype=np.uint8)
            mask[y : y + side, x : x + side] = 1
            rle = encode_mask(mask)
            truth.append(
                {
                    "category_id": category,
                    "bbox": [float(x), float(y), float(side), float(side)],
                    "segmentation": rle,
                    "area": float(side * side),
                    "iscrowd": int(number == 4),
                }
            )
            for shift in generator.integers(0, 8, 2):
                moved = encode_mask(np.roll(mask, int(shift), 1))
                score, guess = float(generator.random()), category if generator.random() < 0.8 else 9
                found["mask"].append({"category_id": guess, "score": score, "segmentation": moved})
                box = [float(x + shift), float(y), float(side), float(side)]
                found["box"].append({"category_id": guess, "score": score, "bbox": box})
        records.append(ImageRecord((200, 200), truth, found))
    return records


def straight(records, kind):
    """pycocotools as its own documentation uses it."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "height": 200, "width": 200} for i in range(len(records))],
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
        "annotations": [
            {**a, "image_id": i, "id": 100 * (i + 1) + k}
            for i, record in enumerate(records)
            for k, a in enumerate(record.truth)
        ],
    }
    truth.createIndex()
    found = truth.loadRes([{**d, "image_id": i} for i, record in enumerate(records) for d in record.found[kind]])
    evaluation = COCOeval(truth, found, {"box": "bbox", "mask": "segm"}[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_average_precision_is_that_of_pycocotools(kind):
    records = made_up(np.random.default_rng(0))
    values, classes = average_precision(records, CATEGORIES, kind)
    expected = straight(records, kind)
    assert 0.05 < values["ap"] < 0.95
    for name, place in STATISTICS.items():
        assert values[name] == (expected[place] if expected[place] >= 0 else pytest.approx(np.nan, nan_ok=True)), name
    assert np.mean(list(classes.values())) == pytest.approx(values["ap"])


def test_average_precision_by_hand():
    """Two balls: one found exactly, the other missed, then by a lower score; a crowd costs nothing."""

    def record(*found):
        truth = [
            {
                "category_id": 3,
                "bbox": [10.0 * i, 0.0, 8.0, 8.0],
                "segmentation": None,
                "area": 64.0,
                "iscrowd": i == 2,
            }
            for i in range(3)
        ]
        boxes = [{"category_id": 3, "score": s, "bbox": [float(x), 0.0, 8.0, 8.0]} for x, s in found]
        return [ImageRecord((20, 40), truth, {"box": boxes})]

    # With recall one half found, 51 of the 101 recall levels have precision 1.
    for found, expected in [(((0, 0.9),), 51 / 101), (((0, 0.9), (10, 0.1)), 1), (((0, 0.9), (20, 0.8)), 51 / 101)]:
        values, classes = average_precision(record(*found), CATEGORIES, "box")
        assert values["ap"] == pytest.approx(expected)
        assert classes == {"ball": pytest.approx(expected), "cup": None, "plant": None}
        assert np.isnan(values["ap_large"])
    assert average_precision(record(), CATEGORIES, "box")[0]["ap"] == 0


def test_truth_as_prediction_is_perfect():
    """Scenes: boxes and masks of the rendered objects."""
    dataset = open_instance_dataset("scenes", limit=3, size=(64, 96))
    assert list(dataset.categories.values()) == list(CLASS_NAMES[7:])
    sample = dataset.samples[1]
    assert sample["image"].shape == (64, 96, 3)
    entries = sample["annotations"]
    masks = torch.stack([torch.from_numpy(coco_mask.decode(entry["segmentation"])).bool() for entry in entries])
    assert len(entries) > 3
    assert masks.sum(0).max() == 1  # seen surfaces
    boxes = torch.tensor([entry["bbox"] for entry in entries])
    boxes[:, 2:] += boxes[:, :2]
    assert torch.equal(corners_of(masks), boxes)
    found = {
        "mask": [{k: e[k] for k in ("category_id", "segmentation")} | {"score": 1.0} for e in entries],
        "box": [{k: e[k] for k in ("category_id", "bbox")} | {"score": 1.0} for e in entries],
    }
    record = ImageRecord((64, 96), entries, found)
    for kind in found:
        assert average_precision([record], dataset.categories, kind)[0]["ap"] == 1


def test_default_rows_on_scenes(evaluate, tmp_path, capsys):
    result = evaluate()
    assert (result.task, result.num_images) == ("instance-segmentation", 3)
    names = [row.name for row in result.rows if row.kind == "clusters"]
    # The stage of 4 blocks after the first, with windows of 4 x 4 tokens.
    assert [name.split(",")[0] for name in names] == ["clusters 3x3 after 3 to 5"] * 3 + [
        "clusters 2x2 after 2 to 5"
    ] * 3
    assert np.isfinite(quality(result)[:, 0]).all()
    assert result.rows[0].metrics["mask_ap"] >= 0
    assert list(result.rows[0].classes) == list(CLASS_NAMES[7:])
    printed = capsys.readouterr().out
    assert "mask AP" in printed
    assert "Mask AP per class" in printed
    with Image.open(tmp_path / "out" / "scenes.png") as picture:
        assert picture.size[0] > 1000


def annotation(number, image, category=3, **changes):
    polygon = [[2, 2, 20, 2, 20, 15, 2, 15]]
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": [2, 2, 18, 13], "iscrowd": 0}
    return entry | {"area": 234, "segmentation": polygon} | changes


def coco_content():
    sizes = [(32, 48), (40, 24), (33, 33), (48, 32), (32, 32)]
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    counts = [0, 200, 32 * 48 - 200]
    crowd = {"segmentation": {"size": [32, 48], "counts": counts}, "iscrowd": 1}
    string = coco_mask.encode(np.asfortranarray(np.eye(33, dtype=np.uint8)))
    text = {"segmentation": {"size": [33, 33], "counts": string["counts"].decode()}}
    entries = [annotation(0, 10), annotation(1, 10, 5, **crowd), annotation(2, 11, 9), annotation(3, 12, **text)]
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    return {"images": images, "annotations": [*entries, annotation(4, 13, 5)], "categories": categories}


def write_coco(folder, content):
    rng = np.random.default_rng(0)
    for image in content["images"]:
        values = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        (folder / "val2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / "val2017" / image["file_name"])
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco", coco_content())


@pytest.mark.slow
def test_two_processes_give_exactly_the_same_metrics_and_skip_the_same_files(
    main, model_folder, coco, tmp_path, capsys
):
    bad = coco / "val2017" / "2.png"
    bad.write_bytes(bad.read_bytes()[:100])
    options = ["--model", str(model_folder), "--dataset", f"coco:{coco}", "--cpu", "--rounds", "1", "--accel", ACCEL]
    options += ["--batch-size", "1", "--pictures", "0"]
    assert main([*options, "--output", str(tmp_path / "bad")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"1 of 5 images cannot be used: .*val2017/2.png cannot be read.*--skip-bad$", error)
    options += ["--skip-bad"]
    one, two, printed = run_one_and_two(main, SCRIPT, options, tmp_path)
    np.testing.assert_array_equal(quality(two), quality(one))
    assert [row.classes for row in two.rows] == [row.classes for row in one.rows]
    for result in (one, two):
        assert result.num_images == 4
        assert "val2017/2.png cannot be read" in result.skipped[0]
    assert printed.count("mask AP") == 1  # only the first process reports


@pytest.mark.parametrize(
    ("model_class", "task"),
    [(RfDetrForObjectDetection, "object-detection"), (RfDetrForInstanceSegmentation, "instance-segmentation")],
)
def test_rf_detr_with_boxes_and_with_masks(evaluate, coco, tmp_path, model_class, task):
    """Labels without names count from 0 to the highest category id."""
    model = rf_detr(model_class, num_labels=10)
    folder = save(model, tmp_path / "model")
    accel = ("--accel", "cluster_after=1,cluster_grid=2x2,neighbors=2")
    result = evaluate("--model", str(folder), "--dataset", f"coco:{coco}", *accel)
    assert result.task == task
    assert result.rows[0].metrics["box_ap"] >= 0
    assert ("mask_ap" in result.rows[0].metrics) == (task == "instance-segmentation")
    assert list(result.rows[0].classes) == list(CATEGORIES.values())
    fast = ta.accelerate(model, ta.TokenClusteringConfig(cluster_after=1, cluster_grid=(2, 2), neighbors=2))
    stored = evaluate("--model", str(save(fast, tmp_path / "fast")), "--dataset", f"coco:{coco}", "--pictures", "0")
    assert stored.task == task
    np.testing.assert_array_equal(quality(stored)[:2], quality(result)[:2])


def detr():
    """Not accelerated: it is measured as it is."""
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 8}
    model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **sizes, **LABELS))
    torch.nn.init.normal_(model.bbox_predictor.layers[-1].weight)
    return model, DetrImageProcessor(size={"height": 64, "width": 64})


def deimv2():
    model = Deimv2ForObjectDetection(Deimv2Config(**{**DEIMV2, **LABELS}))
    return model, RTDetrImageProcessor(size={"height": 64, "width": 64})


def boxes_of(outputs, processor, size):
    """Boxes that are found in an image, as annotations."""
    (found,) = processor.post_process_object_detection(outputs, threshold=0, target_sizes=[size])
    for label, (x1, y1, x2, y2) in zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True):
        box = [x1, y1, x2 - x1, y2 - y1]
        yield {"category_id": label, "bbox": box, "area": box[2] * box[3]}


def masks_of(outputs, processor, size):
    """Masks that are found in an image, as annotations; whatever they overlap, they are whole."""
    if isinstance(processor, EomtImageProcessor):
        labels = outputs.class_queries_logits[0, :, :-1].argmax(-1).tolist()
        height, width = (side * 64 // max(size) for side in size)  # of 64 x 64, the rest is padding
        masks = torch.nn.functional.interpolate(outputs.masks_queries_logits, (64, 64), mode="bilinear")
        masks = torch.nn.functional.interpolate(masks[..., :height, :width], size, mode="bilinear")[0] > 0
    else:
        whole = Mask2FormerImageProcessorPil() if isinstance(processor, OneFormerProcessor) else processor
        options = {"threshold": 0, "target_sizes": [size], "return_binary_maps": True}
        (found,) = whole.post_process_instance_segmentation(outputs, **options)
        masks, labels = found["segmentation"] > 0, [segment["label_id"] for segment in found["segments_info"]]
    for label, mask in zip(labels, masks, strict=True):
        rle = encode_mask(mask)
        box, area = coco_mask.toBbox(rle).tolist(), float(coco_mask.area(rle))
        segmentation = {"size": list(size), "counts": rle["counts"].decode()}
        if area:
            yield {"category_id": label, "bbox": box, "area": area, "segmentation": segmentation}


@pytest.mark.parametrize(
    ("make", "accel"),
    [
        (detr, "none"),
        (deimv2, "cluster_after=1,cluster_grid=2x2,neighbors=2"),
        (tiny_maskformer, ACCEL),
        (tiny_eomt, "cluster_after=1,cluster_grid=4x4"),
        (tiny_oneformer, ACCEL),
    ],
)
def test_models_score_one_on_what_they_find_themselves(evaluate, tmp_path, make, accel):
    """Images of several sizes and shapes; what is found is worked out here, without our task."""
    torch.manual_seed(0)
    model, processor = make()
    detects = "ObjectDetection" in type(model).__name__
    if not detects:
        awaken_queries(model)
    folder = save_with(model.eval(), processor, tmp_path / "model")
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES)]
    for number, size in enumerate([(64, 64), (48, 80), (80, 48)]):
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
    coco = write_coco(tmp_path / "coco", content)
    for image in content["images"]:
        given = {"task_inputs": ["instance"]} if isinstance(processor, OneFormerProcessor) else {}
        with Image.open(coco / "val2017" / image["file_name"]) as picture, torch.no_grad():
            inputs = processor(images=picture, **given, return_tensors="pt")
            outputs = model(**{name: inputs[name] for name in ("pixel_values", "task_inputs") if name in inputs})
        entries = (boxes_of if detects else masks_of)(outputs, processor, (image["height"], image["width"]))
        for entry in entries:
            entry |= {"id": len(content["annotations"]), "image_id": image["id"], "iscrowd": 0}
            content["annotations"].append(entry)
    write_coco(tmp_path / "coco", content)
    assert len({json.dumps(entry.get("segmentation", entry["bbox"])) for entry in content["annotations"]}) > 9
    result = evaluate("--model", str(folder), "--dataset", f"coco:{coco}", "--accel", accel, "--pictures", "0")
    assert result.task == ("object-detection" if detects else "instance-segmentation")
    dense, *others = (row.metrics for row in result.rows)
    assert dense["box_ap" if detects else "mask_ap"] == pytest.approx(1)
    assert bool(others) == (accel != "none")
    assert all(0 <= metrics["kept"] <= 1 for metrics in others)


def test_predictions_are_those_of_the_post_processing(coco, tmp_path):
    """Each mask and box with its score, and only labels of the data set."""
    model, processor = (
        rf_detr(RfDetrForInstanceSegmentation, num_labels=10),
        RfDetrImageProcessor(size={"height": 32, "width": 32}),
    )
    with torch.no_grad():  # every query finds class 3 of the data set and, nearly as likely, class 4 of none
        classifier = model.model.class_embed
        classifier.weight[4] = classifier.weight[3]
        classifier.bias[3:5] = torch.tensor([5.0, 4.999])
    dataset = open_instance_dataset(f"coco:{coco}")
    labels = match_categories(model.config.id2label, dataset.categories)
    assert labels == {3: 3, 5: 5, 9: 9}
    task = InstanceTask(model, processor, InstanceProtocol(dataset.categories, labels))
    sample = dataset.samples[0]
    item = task.encode(sample)
    with torch.no_grad():
        outputs = model(item["pixel_values"][None])
    record = task.keep(task.decode(outputs, [item])[0], item)
    (boxes,) = processor.post_process_object_detection(outputs, threshold=0, target_sizes=[(32, 48)])
    counted = [label in labels for label in boxes["labels"].tolist()]
    x1, y1, x2, y2 = boxes["boxes"][torch.tensor(counted)].double().unbind(-1)
    expected = torch.stack([x1, y1, x2 - x1, y2 - y1], -1)
    assert 0 < len(expected) < len(boxes["labels"])
    assert torch.equal(torch.tensor([d["bbox"] for d in record.found["box"]], dtype=torch.double), expected)
    (masks,) = processor.post_process_instance_segmentation(
        outputs, threshold=0, target_sizes=[(32, 48)], return_binary_maps=True
    )
    chosen = [i for i, info in enumerate(masks["segments_info"]) if info["label_id"] in labels]
    found = [coco_mask.decode(d["segmentation"]) for d in record.found["mask"]]
    np.testing.assert_array_equal(np.stack(found), masks["segmentation"][chosen].numpy())
    assert [d["score"] for d in record.found["mask"]] == pytest.approx(
        [masks["segments_info"][i]["score"] for i in chosen], abs=1e-6
    )


def test_photographs(main, model_folder, tmp_path, capsys):
    photograph = tmp_path / "grey.png"
    Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(photograph)
    options = ["--model", str(model_folder), "--cpu", "--output", str(tmp_path / "out"), "--images", str(photograph)]
    assert main([*options, "--accel", ACCEL]) == 0
    assert re.search(r"grey: \d+ of the \d+ objects of the dense model are among", capsys.readouterr().out)
    assert (tmp_path / "out" / "photographs.png").is_file()


def test_agreement_of_two_models():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 9]])
    one = Instances(torch.tensor([1, 1, 2]), torch.ones(3), boxes)
    two = Instances(torch.tensor([1, 2, 1]), torch.ones(3), boxes)
    # The first two boxes of class 1: one is found again, the other has another class.
    assert count_matches(one, two) == (1, 3, 3)
    assert count_matches(one, one) == (3, 3, 3)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "a polygon must be at least 6 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon must be at least 6 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a polygon must be at least 6 numbers"),
        ({"size": [4, 5]}, "must be polygons, or have size and counts"),
        ({"size": [5, 4], "counts": [20]}, r"run lengths are of \[5, 4\], but its image has \[4, 5\] pixels"),
        ({"size": [4, 5], "counts": [19]}, "run lengths cover 19 pixels, but its image has 20"),
        ({"size": [4, 5], "counts": [21, -1]}, "a run length is not a whole number from 0"),
        ({"size": [4, 5], "counts": "d"}, "run lengths cover|ends in the middle"),
        ({"size": [4, 5], "counts": "~"}, "the character '~' is not of a run-length encoding|ends in the middle"),
        ({"size": [4, 5], "counts": 3}, "counts must be a list or a string"),
        ({"size": None, "counts": "d"}, "run lengths are of None"),
        ({"size": [4, 5], "counts": "o" * 99}, "more than 60 bits"),
        ([[0, 0, 1e9, 1e9, 5, 5]], r"coordinate 1e\+09, far outside of its image of \[4, 5\] pixels"),
        ([[0, 0, 4, 0, 4, 4, 0, 4] * 400_000], "5000000 are the most"),
    ],
)
def test_broken_masks(segmentation, message):
    with pytest.raises(ValueError, match=message):
        check_mask(segmentation, (4, 5))


def test_masks_in_every_form():
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = (generator.random((17, 23)) < generator.random()).astype(np.uint8)
        mask[:, 5:9] = mask[0, 0]  # long runs take several characters
        rle = coco_mask.encode(np.asfortranarray(mask))
        runs = np.diff(np.flatnonzero(np.diff(np.r_[0, mask.ravel("F")]) != 0), prepend=0, append=mask.size).tolist()
        for counts in (rle["counts"], rle["counts"].decode(), runs):
            np.testing.assert_array_equal(
                coco_mask.decode(check_mask({"size": [17, 23], "counts": counts}, (17, 23))), mask
            )
    polygon = check_mask([[2, 2, 20, 2, 20, 15, 2, 15]], (17, 23))
    assert coco_mask.area(polygon) == 18 * 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].append(annotation(7, 99)), "annotation 7: image_id 99 is no image of the file"),
        (lambda c: c["annotations"].append(annotation(7, 10, 4)), "annotation 7: category_id 4 is no category"),
        (lambda c: c["annotations"].append(annotation(7, 10, bbox=[0, 0, -1, 4])), r"annotation 7: bbox must be \[x"),
        (lambda c: c["annotations"].append(annotation(7, 10, area="big")), "annotation 7: area must be a number"),
        (lambda c: c["annotations"].append(annotation(7, 10, iscrowd=2)), "annotation 7: iscrowd must be 0 or 1"),
        (lambda c: c["annotations"].append(annotation(7, 10, segmentation=[[1, 2]])), "annotation 7: a polygon must"),
        (lambda c: c["annotations"].append(annotation(7, 10, segmentation=[])), "annotations without a segmentation"),
        (lambda c: c["annotations"].append(annotation(7, [1])), r"entry \d of 'annotations' has no valid 'image_id'"),
        (lambda c: c["annotations"].append(3), r"entry \d of 'annotations' has no valid 'image_id': 3"),
        (lambda c: c["images"][0].update(height=10**30), "entry 0 of 'images' has no valid 'height'"),
        (lambda c: c["images"][0].update(file_name="../0.png"), "entry 0 of 'images' has no valid 'file_name'"),
        (lambda c: c["images"][0].update(file_name="/0.png"), "entry 0 of 'images' has no valid 'file_name'"),
        (lambda c: c["annotations"].clear(), "no image has an object to find"),
        (lambda c: c["images"].append({"id": 99, "file_name": "x/no.png", "height": 3, "width": 3}), "x/no.png"),
        (lambda c: c["images"].append(c["images"][0]), "images have the id 10 twice"),
        (lambda c: c["images"].append({"id": 99, "height": 3}), "entry 5 of 'images' has no valid 'file_name'"),
        (lambda c: c["images"][0].update(height=31), r"0.png has 32x48 pixels, but 31x48 in instances_val2017.json"),
        (
            lambda c: c["categories"].append({"id": 30, "name": "kite"}),
            "has no label for 1 of the 4 categories .* kite",
        ),
        (lambda c: c.pop("annotations"), "must have the lists images, annotations, categories"),
    ],
)
def test_wrong_files_are_named(main, model_folder, coco, tmp_path, capsys, change, message):
    content = coco_content()
    change(content)
    # An annotation of the image whose size is wrong has polygons, which any size suits.
    content["annotations"] = (
        [a for a in content.get("annotations", []) if a == 3 or a["id"] != 1] if "annotations" in content else 0
    )
    if content["annotations"] == 0:
        content.pop("annotations")
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    options = ["--model", str(model_folder), "--dataset", f"coco:{coco}", "--cpu", "--accel", "none"]
    assert main([*options, "--skip-bad", "--output", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_layouts(coco, tmp_path):
    content = coco_content()
    file = coco / "annotations" / "instances_val2017.json"
    assert len(open_instance_dataset(f"coco:{coco}", limit=2).samples) == 2
    with pytest.raises(ValueError, match=r"lacks 5 of the 5 images of .*: 0.png, 1.png.*--image-folder"):
        open_instance_dataset(f"coco:{file}")
    by_file = open_instance_dataset(f"coco:{file}", image_folder=str(coco / "val2017"))
    assert [entry["iscrowd"] for entry in by_file.samples[0]["annotations"]] == [0, 1]
    folder = tmp_path / "export" / "test"
    (coco / "val2017").rename(tmp_path / "moved")
    folder.mkdir(parents=True)
    for path in (tmp_path / "moved").iterdir():
        path.rename(folder / path.name)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    beside = open_instance_dataset(f"coco:{tmp_path / 'export'}", split="test")
    assert beside.categories == CATEGORIES
    assert [len(sample["annotations"]) for sample in beside.samples] == [2, 1, 1, 1, 0]
    with pytest.raises(ValueError, match=r"neither a COCO file nor a folder with annotations/instances_val2017.json"):
        open_instance_dataset(f"coco:{tmp_path / 'export'}")
    with pytest.raises(ValueError, match=r"dataset 'cocoa' is not known; use scenes"):
        open_instance_dataset("cocoa")


def test_labels_meet_categories():
    names = {0: "wall", 1: "Tvmonitor", 2: "dining_table", 3: "N/A"}
    assert match_categories(names, {62: "tv", 67: "dining table"}) == {1: 62, 2: 67}
    plain = {i: f"LABEL_{i}" for i in range(3)}
    assert match_categories(plain, CATEGORIES) == {0: 3, 1: 5, 2: 9}
    with pytest.raises(ValueError, match="3 labels without names, which fit neither"):
        match_categories(plain, {3: "ball", 5: "cup"})
    with pytest.raises(ValueError, match="no label for 1 of the 2 categories of the data set: kite"):
        match_categories(names, {62: "tv", 38: "kite"})


def test_models_that_cannot_be_measured(main, tmp_path, capsys):
    ViTConfig().save_pretrained(tmp_path / "vit")
    assert main(["--model", str(tmp_path / "vit"), "--cpu", "--output", str(tmp_path / "out")]) == 2
    assert "of type 'vit', which finds no objects; types that do:" in capsys.readouterr().err
