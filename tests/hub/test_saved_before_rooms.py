"""Folders saved before the modules moved: the shim in them names modules, so those have to stay where they are."""

from pathlib import Path

import fresh
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
FOLDERS = ROOT / "tests" / "fixtures" / "saved_before_rooms"
AUTO = {
    "dpt": ("AutoModelForDepthEstimation", "predicted_depth"),
    "segmenter": ("AutoModelForSemanticSegmentation", "logits"),
    "stvit": ("AutoModelForImageClassification", "logits"),
}

# The package is imported first, or not at all before the shim does.
CODE = f"""
import sys
assert "hf_tokaccel" not in sys.modules
remote, folders, output = sys.argv[1] == "remote", sys.argv[2], sys.argv[3]
if not remote:
    import hf_tokaccel
import torch, transformers
from safetensors.torch import save_file
images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
outputs = {{}}
for name, (auto, field) in {AUTO!r}.items():
    options = {{"trust_remote_code": True}} if remote else {{}}
    model = getattr(transformers, auto).from_pretrained(f"{{folders}}/{{name}}", **options).eval()
    assert type(model).__module__.startswith("hf_tokaccel.models."), type(model)
    with torch.no_grad():
        outputs[name] = model(images)[field].contiguous()
save_file(outputs, output)
"""


@pytest.fixture(scope="module", params=["remote", "imported"])
def outputs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ["-c", CODE, request.param, FOLDERS, folder / "outputs.safetensors"]
    done = fresh.run(arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(folder / "outputs.safetensors")


@pytest.mark.parametrize("name", AUTO)
def test_it_loads_and_gives_the_same(outputs, name):
    expected = load_file(FOLDERS / "outputs.safetensors")[name]
    # Recorded again when `inverse_temperature="auto"` became a median, which docs/upgrading.md says.
    # Of the largest value, since depth goes up to 1,000 here and sums round by the number of threads.
    torch.testing.assert_close(outputs[name], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
