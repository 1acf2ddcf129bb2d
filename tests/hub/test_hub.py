"""The way to the Hub and back: the real client, in processes of their own, against a Hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import running_hub
from huggingface_hub import ModelCard

CLIENT = Path(__file__).parents[1] / "hub_client.py"


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Runs a step of hub_client.py with a home, and so a cache, of its own."""
    folder = tmp_path_factory.mktemp("models")

    def run(step, token=None):
        left_out = ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_TOKEN": token} if token else {}
        command = [sys.executable, str(CLIENT), step, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def published(client):
    return client("publish", token="hf_alice")


@pytest.fixture(scope="module")
def read(client, published):
    return client("read")


def files_of(hub, name):
    (commit,) = hub.repositories[name].commits
    return commit[1]


def test_a_push_is_one_commit_with_everything_that_loading_needs(hub, published):
    repository = hub.repositories["alice/fast"]
    assert [oid for oid, _ in repository.commits] == [published["commit"]]
    expected = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokaccel_hub.py"]
    assert sorted(repository.head[1]) == expected
    config = json.loads(repository.head[1]["config.json"])
    assert config["accel"]["cluster_after"] == 1
    assert not repository.private


def test_the_card_tells_what_was_measured(hub, published):
    card = ModelCard(files_of(hub, "alice/fast")["README.md"].decode())
    assert card.data.pipeline_tag == "depth-estimation"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["abs_rel"] == 0.25
    assert "| dense | 0.1250 |" in card.text
    assert "| clusters 2x2 after 1 | 0.2500 |" in card.text
    assert "| clusters 2x2 after 1 | 32 x 32 | 200.0 | 100.0 | 300.0 |" in card.text
    assert 'AutoModelForDepthEstimation.from_pretrained("alice/fast")' in card.text


def test_cards_do_not_pass_without_results_or_with_those_of_another_setting(published):
    assert "has no results for its card" in published["no results"]
    assert "no row of this model's setting" in published["other setting"]
    assert "clusters 2x2 after 1" in published["other setting"]
    assert "--not-measured" in published["unmeasured"]


def test_nobody_pushes_without_a_token_or_with_a_wrong_one(hub, published):
    assert "no token for the Hub" in published["no token"]
    assert "Invalid user token" in published["wrong token"]
    assert "403" in published["not mine"]
    assert {"alice/other", "bob/other"}.isdisjoint(hub.repositories)


def test_the_commands_accelerate_and_push_privately(hub, published):
    made, made_says, pushed, pushed_says = published["commands"]
    assert (made, pushed) == (0, 0), made_says + pushed_says
    assert hub.repositories["alice/private"].private
    assert json.loads(pushed_says)["commit"] == hub.repositories["alice/private"].head[0]
    assert "Not measured" not in files_of(hub, "alice/private")["README.md"].decode()


def test_what_was_pushed_loads_with_auto_classes(hub, published, read):
    assert read["endpoint"] == hub.url
    assert (read["class"], read["processor"]) == ("TokAccelDPTForDepthEstimation", "DPTImageProcessor")
    assert read["accel"]["cluster_grid"] == [2, 2]
    torch.testing.assert_close(torch.tensor(read["depth"]), torch.tensor(published["depth"]), rtol=0, atol=0)
    assert read["files"] == sorted(files_of(hub, "alice/fast"))
    assert read["dense"] != read["depth"]


def test_what_was_pushed_loads_without_importing_the_package_first(client, published):
    seen = client("read_without_import")
    assert (seen["imported before"], seen["class"]) == (False, "TokAccelDPTForDepthEstimation")
    torch.testing.assert_close(torch.tensor(seen["depth"]), torch.tensor(published["depth"]), rtol=0, atol=0)


def test_a_private_model_needs_its_owners_token(published, read):
    for who in ("private without", "private of another"):
        assert "alice/private" in read[who]
    assert read["private"] == read["depth"] == published["depth"]


def test_an_upload_that_breaks_off_changes_nothing(hub, published, read):
    assert "upload to alice/fast" in published["cut"]
    assert "upload to alice/new" in published["cut new"]
    # What was there before is still whole; a repository without a commit has nothing that could be loaded.
    assert read["depth"] == published["depth"]
    assert hub.repositories["alice/new"].commits == []
    assert "alice/new" in read["new"]


def test_a_download_that_breaks_off_leaves_nothing_that_loads(read, published):
    assert read["cut"] is not None
    assert read["cut, from the cache"] is not None
    assert read["depth"] == published["depth"]
