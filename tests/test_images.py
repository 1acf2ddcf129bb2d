"""Image files of every kind come in as they look: 16 bits, floating point, and turned by EXIF."""

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from hf_tokaccel.evaluation.segmentation.data import open_segmentation_dataset
from hf_tokaccel.images import UnreadableError, read_image
from hf_tokaccel.training.classification.data import load_images
from hf_tokaccel.tuning.images import gather_images

RAMP = np.arange(0, 256, dtype=np.uint8).reshape(8, 32)
TURNS = range(1, 9)


def save_turned(path, orientation, values=RAMP):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(path, exif=exif)
    return path


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    assert (read_image(path) == RAMP[..., None]).all()
    # Dark ones stay dark, and do not count as 8 bits because they would fit.
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    assert read_image(path).max() == 1


@pytest.mark.parametrize(
    "values",
    [RAMP / np.float32(255), RAMP.astype(np.float32), RAMP.astype(np.int32)],
    ids=["0 to 1", "0 to 255", "whole"],
)
def test_numbers_of_32_bits(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert (read_image(tmp_path / "x.tif") == RAMP[..., None]).all()


@pytest.mark.parametrize("bad", [-1.0, 256.0, np.nan, np.inf])
def test_numbers_whose_white_nobody_knows(tmp_path, bad):
    values = RAMP.astype(np.float32)
    values[3, 3] = bad
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableError, match=r"x\.tif cannot be read .*nobody says what is white.*from 0 to 255"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_images_but_none_with_labels_of_stored_pixels(tmp_path, orientation):
    path = save_turned(tmp_path / "x.png", orientation)
    assert (read_image(path) == np.asarray(load_image(str(path)))).all()
    assert (read_image(path, upright=False) == RAMP[..., None]).all()


def test_images_of_a_data_set(tmp_path):
    """As its labels are: those of pixels are of the stored ones, a class is of the picture as it looks."""
    for part in ("images", "annotations"):
        (tmp_path / "ade" / part / "validation").mkdir(parents=True)
    save_turned(tmp_path / "ade" / "images" / "validation" / "a.png", 6)
    Image.fromarray(RAMP % 3).save(tmp_path / "ade" / "annotations" / "validation" / "a.png")
    sample = open_segmentation_dataset(f"ade20k:{tmp_path / 'ade'}", num_classes=150).samples[0]
    assert sample["image"].shape[:2] == tuple(sample["label"].shape) == RAMP.shape
    for name in ("cat", "dog"):
        (tmp_path / "animals" / "train" / name).mkdir(parents=True)
        save_turned(tmp_path / "animals" / "train" / name / "a.png", 6)
        Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "animals" / "train" / name / "b.png")
    images = load_images(str(tmp_path / "animals"), "train", (8, 8))
    shown = [images[index][0] for index in range(4)]
    assert sorted(tuple(image.shape) for image in shown) == [(3, 8, 32)] * 2 + [(3, 32, 8)] * 2
    assert all(image.float().mean() == RAMP.mean() for image in shown)


def test_images_to_tune_on():
    def processor(images, **_):
        return {"pixel_values": np.asarray(images, np.float32).transpose(2, 0, 1)[None]}

    grey = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert (gather_images([grey], processor)[0].numpy() == RAMP).all()
    with pytest.raises(ValueError, match=r"array of uint16 is not valid.*uint8"):
        gather_images([np.zeros((8, 8, 3), np.uint16)], processor)
