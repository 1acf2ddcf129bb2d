"""Files of annotations with hostile values: they are read, or refused in one line that names the file."""

import json

import numpy as np
import pytest
from fuzzing import mutations
from PIL import Image

from hf_tokaccel.checks import UserError
from hf_tokaccel.evaluation.annotations import is_file_name
from hf_tokaccel.evaluation.instances.data import encode_mask, open_instance_dataset
from hf_tokaccel.evaluation.panoptic.data import open_panoptic_dataset
from hf_tokaccel.evaluation.sam.data import read_prompts

HOW_OFTEN = [200, pytest.param(20_000, marks=pytest.mark.slow)]

RLE = {"size": [8, 12], "counts": [10, 5, 81]}
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 12}],
    "categories": [{"id": 3, "name": "ball"}, {"id": 5, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 5, "segmentation": [[1, 1, 7.5, 1, 7.5, 6]], "bbox": [1, 1, 7, 5]},
        {"id": 3, "image_id": 1, "category_id": 5, "segmentation": RLE, "iscrowd": 1},
        {
            "id": 4,
            "image_id": 1,
            "category_id": 5,
            "segmentation": RLE | {"counts": encode_mask(np.eye(8, 12))["counts"].decode()},
        },
    ],
}
SEGMENTS = [{"id": 1, "category_id": 3, "iscrowd": 0}, {"id": 300, "category_id": 5, "iscrowd": 1}]
PANOPTIC = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "categories": [{"id": 3, "name": "ball", "isthing": 1}, {"id": 5, "name": "cup", "isthing": 0}],
    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": SEGMENTS}],
}


def check_all(path, contents, read):
    """How many were read; the others are refused by an error that names the file and is short."""
    count, said = 0, []
    for content in contents:
        path.write_text(json.dumps(content))
        try:
            read()
            count += 1
        except UserError as error:
            said.append(str(error))
    assert all((str(path.parent) in text or path.name in text) and len(text) < 1500 for text in said)
    return count


@pytest.mark.parametrize("count", HOW_OFTEN)
def test_instances(tmp_path, count):
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    path = tmp_path / "x.json"

    def read():
        list(open_instance_dataset(f"coco:{path}").samples)

    assert check_all(path, [INSTANCES], read) == 1
    assert 0 < check_all(path, mutations(INSTANCES, count), read) < count / 2


@pytest.mark.parametrize("count", HOW_OFTEN)
def test_panoptic(tmp_path, count):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:4, :, 0], pixels[4:, :, 0], pixels[4:, :, 1] = 1, 300 % 256, 300 // 256
    for folder in ("val2017", "panoptic_val2017"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    path = tmp_path / "panoptic_val2017.json"

    def read():
        list(open_panoptic_dataset(f"coco:{tmp_path}", labels=["ball", "cup"]).samples)

    assert check_all(path, [PANOPTIC], read) == 1
    assert 0 < check_all(path, mutations(PANOPTIC, count), read) < count / 2


@pytest.mark.parametrize("count", HOW_OFTEN)
def test_prompts(tmp_path, count):
    path = tmp_path / "prompts.json"

    def read():
        read_prompts(path, ["a"])["a"].check(f"a of {path.name}", (8, 12))

    prompts = {"a": {"points": [[1, 2], [3.5, 4]], "boxes": [[0, 1, 5, 6]]}}
    assert check_all(path, [prompts], read) == 1
    assert 0 < check_all(path, mutations(prompts, count), read) < count / 2


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\0", ""])
def test_files_that_are_no_json(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"annotation file .*x\.json cannot be read as JSON"):
        open_instance_dataset(f"coco:{tmp_path / 'x.json'}")


def test_file_names_stay_below_their_folder():
    assert all(map(is_file_name, ("a.png", "a/b.png", "..a.png")))
    assert not any(map(is_file_name, ("../a.png", "a/../../b.png", "/a.png", "..\\a.png", "", "a\0", "x" * 256, 3)))
