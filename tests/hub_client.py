"""What tests/hub/test_hub.py runs in processes of their own, whose environment names the local Hub.

python hub_client.py publish|read|read_without_import FOLDER prints JSON.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

import torch
from huggingface_hub.utils import _http


def control(**switches):
    body = json.dumps(switches).encode()
    urllib.request.urlopen(urllib.request.Request(os.environ["HF_ENDPOINT"] + "/control", body)).read()


def error_of(call):
    try:
        call()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def depth(model):
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).predicted_depth.flatten().tolist()


def make_base(folder):
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    shape = {"image_size": 32, "patch_size": 8, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 8}
    config = DPTConfig(**sizes, **shape, neck_hidden_sizes=[4, 4, 8, 8], initializer_range=0.3)
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def make_result(model):
    from hf_tokaccel.evaluation import Result, Row

    names = ("abs_rel", "rmse", "log10", "delta1", "delta2", "delta3")

    def row(name, kind, accel, value):
        metrics, seconds = dict.fromkeys(names, value), {"median": 0.2, "p10": 0.1, "p90": 0.3}
        return Row(name, kind, accel, (32, 32), metrics, 1.0, 1.0, 40.0, 1.0, seconds, group=int(accel is not None))

    rows = [row("dense", "dense", None, 0.125), row("clusters 2x2 after 1", "clusters", model.config.accel, 0.25)]
    machine = {"processor": "none", "threads": 1, "device": "cpu"}
    environment = {
        "machine": machine,
        "versions": {"torch": torch.__version__},
        "date": "2026-01-01",
        "command": "test",
    }
    options = {"batch_size": 8, "dtype": "float32"}
    return Result("depth-estimation", "tiny", "nothing (test)", 2, 1, {"crop": "none"}, options, environment, rows)


def publish(folder):
    from transformers import AutoModelForDepthEstimation
    from typer.testing import CliRunner

    import hf_tokaccel as ta
    from hf_tokaccel.cli import app

    make_base(folder / "base")
    native = AutoModelForDepthEstimation.from_pretrained(folder / "base")
    model = ta.accelerate(native, ta.TokenClusteringConfig(cluster_after=1, cluster_grid=(2, 2)))
    result, seen = make_result(model), {"depth": depth(model)}
    seen["commit"] = model.push_to_hub("alice/fast", result=result).oid
    seen["no results"] = error_of(lambda: model.push_to_hub("alice/other"))
    other = ta.accelerate(native, ta.TokenClusteringConfig(cluster_after=2, cluster_grid=(2, 2)))
    seen["other setting"] = error_of(lambda: other.push_to_hub("alice/other", result=result))
    seen["wrong token"] = error_of(lambda: model.push_to_hub("alice/other", result=result, token="hf_nobody"))
    seen["no token"] = error_of(lambda: model.push_to_hub("alice/other", result=result, token=False))
    seen["not mine"] = error_of(lambda: model.push_to_hub("bob/other", result=result))

    runner, out = CliRunner(), str(folder / "fast")
    setting = ["--cluster-after", "1", "--cluster-grid", "2x2"]
    made = runner.invoke(app, ["accelerate", str(folder / "base"), "--out", out, *setting])
    seen["unmeasured"] = runner.invoke(app, ["push", out, "alice/private", "--private"]).output
    result.save(folder / "result.json")
    push = ["push", out, "alice/private", "--private", "--results", str(folder / "result.json"), "--json"]
    pushed = runner.invoke(app, push)
    seen["commands"] = [made.exit_code, made.stderr, pushed.exit_code, pushed.stdout]

    control(cut_uploads=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    seen["cut"] = error_of(lambda: model.push_to_hub("alice/fast", result=result))
    seen["cut new"] = error_of(lambda: model.push_to_hub("alice/new", result=result))
    control(cut_uploads=False)
    return seen


def read(folder):
    from huggingface_hub import HfApi, constants
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    import hf_tokaccel as ta

    load = AutoModelForDepthEstimation.from_pretrained
    control(cut_downloads=True)
    seen = {"cut": error_of(lambda: load("alice/fast"))}
    seen["cut, from the cache"] = error_of(lambda: load("alice/fast", local_files_only=True))
    control(cut_downloads=False)
    model = load("alice/fast")
    seen |= {"class": type(model).__name__, "accel": model.config.accel, "depth": depth(model)}
    seen["processor"] = type(AutoImageProcessor.from_pretrained("alice/fast")).__name__
    seen["files"] = sorted(HfApi().list_repo_files("alice/fast"))
    seen["private without"] = error_of(lambda: load("alice/private"))
    seen["private of another"] = error_of(lambda: load("alice/private", token="hf_bob"))
    seen["private"] = depth(load("alice/private", token="hf_alice"))
    seen["new"] = error_of(lambda: load("alice/new"))
    seen["dense"] = depth(ta.to_native(load("alice/fast", accel=None)))
    seen["endpoint"] = constants.ENDPOINT
    return seen


def read_without_import(folder):
    from transformers import AutoModelForDepthEstimation

    before = "hf_tokaccel" in sys.modules
    model = AutoModelForDepthEstimation.from_pretrained("alice/fast", trust_remote_code=True)
    return {"imported before": before, "class": type(model).__name__, "depth": depth(model)}


if __name__ == "__main__":
    _http.time.sleep = lambda seconds: None  # the client waits longer and longer between its attempts
    print("\n" + json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
