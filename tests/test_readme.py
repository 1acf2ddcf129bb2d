"""README's snippets are run, its commands are those of CI, and its family is a family."""

import re
import shutil
import sys
import types
from pathlib import Path

import pytest
from family import FamilyTester
from transformers import AutoModel, DeiTConfig, DeiTForImageClassification, IJepaConfig, IJepaModel

import hf_tokaccel as ta
from benchmarks.readme import PAGES, fill
from hf_tokaccel.reference import reference_model_path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def snippets(heading):
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_quick_start(tmp_path, monkeypatch, capsys):
    """With a stand-in of the Hub's model, since nothing can be fetched here."""
    code, _ = snippets("Use it")
    folder = tmp_path / "Intel" / "dpt-large"
    shutil.copytree(reference_model_path("depth"), folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size" in capsys.readouterr().out
    assert (tmp_path / "dpt-large-tokaccel" / "tokaccel_hub.py").exists()


def test_segmenter(capsys):
    _, code = snippets("Use it")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"


def test_semantic_tokens(tmp_path, monkeypatch):
    """README's and its page's, which begin alike; with a stand-in of the Hub's model."""
    (first,) = snippets("Semantic tokens")
    page = (ROOT / "docs" / "semantic_tokens.md").read_text()
    second, head = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    config = DeiTConfig(
        image_size=128, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 3
    DeiTForImageClassification(config).save_pretrained(tmp_path / "facebook" / "deit-small-patch16-224")
    monkeypatch.chdir(tmp_path)
    for code in (f"import hf_tokaccel as ta\n{first}", second):
        with pytest.warns(UserWarning, match="is not trained yet"):
            exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "stvit-deit-small" / "tokaccel_hub.py").exists()
    namespace = {"ta": ta}
    exec(compile(head, "semantic_tokens.md", "exec"), namespace)
    assert namespace["model"].config.backbone_config.accel["recover"]


@pytest.fixture(scope="class")
def ijepa():
    """The module under 'Adding a family', put where a new file would be."""
    (code,) = snippets("Adding a family")
    assert len(code.splitlines()) <= 40
    module = types.ModuleType("hf_tokaccel.models.ijepa")
    module.__package__ = "hf_tokaccel.models"
    sys.modules[module.__name__] = module
    exec(compile(code, "README.md", "exec"), module.__dict__)
    yield
    ta.FAMILIES.pop("ijepa")


@pytest.mark.usefixtures("ijepa")
class TestIJepaFromReadme(FamilyTester):
    """One file is enough: the whole shared tester passes on it."""

    native, auto = IJepaModel, AutoModel
    legacy_key = "encoder.layer.0.attention.attention.query.weight"
    new_key = "layers.0.attention.q_proj.weight"
    other_size = None
    test_fresh_process_with_and_without_the_package_imported = None  # a file that is not installed cannot be imported

    def config(self):
        return IJepaConfig(
            image_size=32,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
        )


def test_commands_are_those_that_ci_runs():
    commands = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2]
    assert "examples/evaluate_depth.py" in commands[0]
    assert "pytest" in commands[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_tables_are_those_of_the_committed_results():
    for page in PAGES:
        assert fill(page) == page.read_text(), "run `python -m benchmarks.readme`"
