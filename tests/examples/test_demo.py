"""The demo: what its page shows, without gradio, and the page itself where gradio is installed."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_script

import hf_tokaccel as ta

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    module = load_script(SCRIPT)
    module.ROUNDS = 1
    return module


def test_pictures_cost_and_sentence_of_a_setting(demo):
    image = demo.scene_for("depth")["image"]
    setting, blocks, tokens = demo.first_setting("depth")
    assert setting.cluster_after < blocks == demo.model_of("depth").dense.config.num_hidden_layers
    *pictures, rows, said = demo.compare("depth", image, setting.cluster_after, 8, "soft", 5, 5)
    shown = dict(zip(demo.PARTS, pictures, strict=True))
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures)
    assert len({picture.shape for picture in pictures}) == 1
    assert not np.array_equal(shown["dense"], shown["accelerated"])
    assert len(np.unique(shown["difference"].reshape(-1, 3), axis=0)) > 10
    (dense, *_, whole), (fast, *_, share) = rows
    assert (dense, fast, whole) == ("dense", "accelerated", "100 %")
    assert all(len(row) == len(demo.HEADINGS) for row in rows)
    assert rows[0][2] == "1.00x"
    assert float(rows[1][3]) < float(rows[0][3])  # GFLOPs
    assert f"{share} of the GFLOPs" in said
    assert f"8x8 after {setting.cluster_after}" in said
    assert tokens == 24


def test_the_slider_of_adaptive_clusters_is_a_share_of_the_tokens(demo):
    image = demo.scene_for("depth")["image"]
    assert demo.takes_regions("depth")
    assert not demo.takes_regions("panoptic")
    *pictures, rows, said = demo.compare("depth", image, 2, 8, "delta", 5, 5, "adaptive", 0.5)
    shown = dict(zip(demo.PARTS, pictures, strict=True))
    # Borders of regions over the photograph, and their mean colours.
    assert not np.array_equal(shown["clusters"], shown["mean colours"])
    assert "0.5 after 2, delta" in said
    fewer = demo.compare("depth", image, 2, 8, "delta", 5, 5, "adaptive", 0.25)
    assert float(fewer[-2][1][3]) < float(rows[1][3])  # GFLOPs
    assert not np.array_equal(fewer[demo.PARTS.index("clusters")], shown["clusters"])


def test_as_many_clusters_as_tokens_differ_nowhere(demo):
    image = demo.scene_for("depth")["image"]
    *pictures, _, said = demo.compare("depth", image, 4, 24, "nearest", 5, 5)
    shown = dict(zip(demo.PARTS, pictures, strict=True))
    np.testing.assert_array_equal(shown["dense"], shown["accelerated"])
    assert len(np.unique(shown["difference"].reshape(-1, 3), axis=0)) == 1
    assert "mean relative difference 0.0000" in said


def test_pixels_that_agree_are_counted(demo):
    loaded, image = demo.model_of("segmentation"), demo.scene_for("segmentation")["image"]
    *_, said = demo.compare("segmentation", image, 2, 4, "soft", 5, 5)
    accel = ta.TokenClusteringConfig(cluster_after=2, cluster_grid=4, expansion="soft")
    pixel_values = loaded.task.encode({"image": image})["pixel_values"][None]
    with torch.inference_mode():
        logits = [model(pixel_values).logits for model in (loaded.dense, ta.accelerate(loaded.dense, accel))]
    dense, fast = (torch.nn.functional.interpolate(x, image.shape[:2], mode="bilinear").argmax(1) for x in logits)
    agreed = (dense == fast).double().mean().item()
    assert 0.3 < agreed < 0.999
    assert float(re.search(r"([\d.]+)% of the pixels agree", said)[1]) == pytest.approx(100 * agreed, abs=0.5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("depth", None, 4, 8, "soft", 5, 5), "give one"),
        (("depth", np.zeros((8, 8, 3), np.uint8), 99, 8, "soft", 5, 5), "cluster_after=99"),
        (("depth", np.zeros((8, 8, 3), np.uint8), 4, 25, "soft", 5, 5), "25"),
        (("depth", np.zeros((8, 8, 3), np.uint8), 4, 8, "soft", 5, 4), "window=4"),
        (("depth", np.zeros((8, 8, 3), np.uint8), 4, 8, "soft", 5, 5, "adaptive", 0.5), "expansion='soft'"),
        (("depth", np.zeros((8, 8, 3), np.uint8), 4, 8, "soft", 5, 5, "free", 0.5), "kind='free'"),
        (("no/such-model", np.zeros((8, 8, 3), np.uint8), 4, 8, "soft", 5, 5), "Intel/dpt-large"),
    ],
)
def test_mistakes_are_values_that_the_message_names(demo, values, said):
    with pytest.raises(ValueError, match=said):
        demo.compare(*values)


def test_without_gradio_the_page_says_what_to_install(demo, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )
    assert demo.main([]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert 'pip install -e ".[demo]"' in message
    assert message.count("\n") == 1


@pytest.fixture
def page():
    """Address of the demo in a process of its own."""
    pytest.importorskip("gradio", reason='the page needs gradio: pip install -e ".[demo]"')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    command = [sys.executable, str(SCRIPT), "--model", "depth", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + 300
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end, "the page did not start"
            try:
                urllib.request.urlopen(address, timeout=10).read()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_the_page_answers(demo, page, tmp_path):
    from gradio_client import Client, exceptions, handle_file

    path = tmp_path / "scene.png"
    Image.fromarray(np.asarray(demo.scene_for("depth")["image"])).save(path)
    client = Client(page, verbose=False, download_files=str(tmp_path))
    values = ("depth", handle_file(path), 4, 12, "soft", 5, 5, "grid", 0.5)
    *pictures, table, said = client.predict(*values, api_name="/compare")
    assert len(pictures) == len(demo.PARTS)
    assert all(Image.open(picture).size[0] > 100 for picture in pictures)
    assert table["headers"] == demo.HEADINGS
    assert [row[0] for row in table["data"]] == ["dense", "accelerated"]
    assert "12x12 after 4" in said
    with pytest.raises(exceptions.AppError, match="window=4"):
        client.predict("depth", handle_file(path), 4, 12, "soft", 5, 4, "grid", 0.5, api_name="/compare")
