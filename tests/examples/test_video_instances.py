"""`examples/video_instances.py` from end to end on a tiny random model."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_main
from test_evaluate_panoptic import make_model, make_processor, save

SCRIPT = Path(__file__).parents[2] / "examples" / "video_instances.py"
ACCEL = "cluster_after=2,cluster_grid=2x2,neighbors=2"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save(make_model(), make_processor(), tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def show(model_folder):
    """Runs the script on the tiny model."""
    main = load_main(SCRIPT)
    options = [
        "--model",
        str(model_folder),
        "--cpu",
        "--rounds",
        "1",
        "--threshold",
        "0",
        "--overlap",
        "0",
        "--accel",
        ACCEL,
    ]
    return lambda *arguments: main([*options, *map(str, arguments)])


def lines(printed, name):
    """Numbers in the lines of the table that begin so."""
    found = [line.strip("│ \n").split("│") for line in printed.splitlines() if line.startswith(f"│ {name}")]
    return np.array([[float(re.search(r"[\d.]+|nan", cell)[0]) for cell in line[1:]] for line in found])


def write_frames(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_a_pan_over_a_scene(show, tmp_path, capsys):
    assert show("--length", 4, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "2x2 after 2 to 5, soft, neighbors=2" in printed
    quality = lines(printed, "frame")
    assert quality.shape == (4, 3)
    assert (quality[:, 0] == 100).all()
    assert (quality[:, 1:] < 100).all()
    assert not np.array_equal(quality[:, 1], quality[:, 2])
    assert lines(printed, "clip").shape == lines(printed, "GFLOPs per frame").shape == (1, 3)
    assert (lines(printed, "ms per frame") > 0).all()
    with Image.open(tmp_path / "out" / "clip.png") as picture:
        assert picture.size[1] > picture.size[0]  # 4 lines of 4


def test_frames_of_a_folder_that_are_all_alike(show, tmp_path, capsys):
    """What they share is what each of them has."""
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    folder = write_frames(tmp_path / "frames", [image] * 5)
    (folder / "notes.txt").write_text("no frame")
    assert show("--frames", folder, "--length", 4, "--shared", 2, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "2 frames share a plan" in printed
    quality = lines(printed, "frame")
    assert quality.shape == (4, 3)
    np.testing.assert_allclose(quality[:, 1], quality[:, 2], atol=1)  # a pixel at a border may fall to either side


def test_mistakes_are_one_line_and_exit_two(show, tmp_path, capsys):
    image = np.zeros((48, 80, 3), dtype=np.uint8)
    folder = write_frames(tmp_path / "frames", [image, image, image[:40]])
    for arguments, message in (
        (["--frames", tmp_path / "none"], "none must be a folder of at least 2 PNG or JPEG files"),
        (["--frames", folder], "frames of a clip must have one size, but there are 1 of 48x80, 2 of 40x80"),
        (["--length", 4, "--shared", 3], "shared_frames=3 is not valid: it must be 1 or a divisor of the 4 frames"),
        (["--length", 1], "--length 1 must be at least 2"),
    ):
        assert show(*arguments, "--output", tmp_path / "out") == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert not (tmp_path / "out").exists()
