"""What an import costs, counted in modules, and that nothing shows that families are imported late."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fresh
import pytest
import transformers

import hf_tokaccel as ta
from hf_tokaccel import registry
from hf_tokaccel.discovery import family_modules, import_families, modules_of
from hf_tokaccel.semantic import SEMANTIC

ROOT = Path(__file__).parents[1]


def start(code, *arguments, forked=False):
    """What code prints as JSON in a new process; a `forked` one has imported Transformers already."""
    if forked:
        done = fresh.run(["-c", code, *arguments], cwd=ROOT)
    else:
        command, environment = [sys.executable, "-c", code, *arguments], os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


COUNT = """
import json, sys

def heavy():
    return sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "numpy"))

import hf_tokaccel
found = {"import": heavy(), "ours": sorted(name for name in sys.modules if name.startswith("hf_tokaccel"))}
assert "accelerate" in dir(hf_tokaccel)
from hf_tokaccel.cli import app
sys.argv = ["hf_tokaccel", "--help"]
try:
    app()
except SystemExit as status:
    assert status.code == 0
print(json.dumps(found | {"help": heavy()}))
"""


def test_neither_the_package_nor_help_imports_torch_or_transformers():
    found = start(COUNT)
    assert found["import"] == found["help"] == []
    assert found["ours"] == [f"hf_tokaccel{name}" for name in ("", ".discovery", ".lazy", ".version")]


BLOCKED = """
import importlib, json, pkgutil, sys

assert not {"datasets", "evaluate", "hf_tokaccel"} & sys.modules.keys()

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "evaluate"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import benchmarks, hf_tokaccel.bench
count = 0
for package in (hf_tokaccel.bench, benchmarks):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        count += 1
print(json.dumps(count))
"""


def test_measuring_needs_neither_datasets_nor_evaluate():
    assert start(BLOCKED, forked=True) > 20


def test_file_names_say_which_families_are_in_them():
    for name, family in ta.FAMILIES.items():
        module = family.config.__module__
        for model_type in (name, family.config.model_type):
            place = [f"hf_tokaccel.models.{found}" for found in modules_of(model_type)]
            assert place, f"{model_type!r} is found by its file's name: rename {module} to what the type begins with"
            assert f"{module}.".startswith(f"{place[0]}."), f"{model_type!r} is looked for in {place[0]}"
        assert family.config.model_type == f"tokaccel_{name}"


def test_parts_are_found_by_the_module_of_their_native_class():
    """Without what was registered, each native class leads to the module of its accelerated class."""
    import_families(family_modules())
    modules = {f"hf_tokaccel.models.{name}" for name in family_modules()}
    for native, ours in registry._accelerated.items():
        module = ".".join(ours.__module__.split(".")[:3])
        # README's example, which another test registers, has no file.
        if native.__module__.startswith("transformers.models.") and module in modules:
            name = native.__module__.rpartition(".")[2].partition("_")[2]
            assert module == f"hf_tokaccel.models.{modules_of(name)[0]}", native


def test_semantic_families_are_in_modules_that_say_so():
    import_families(family_modules())
    assert {family.config.__module__.rpartition(".")[2] for family in SEMANTIC.values()} == {
        name for name in family_modules() if name.startswith("stvit")
    }


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("sam_hq_vision_model", ("sam_hq",)),
        ("sam_vision_model", ("sam",)),
        ("tokaccel_mm-grounding-dino", ("mm_grounding_dino",)),
        ("tokaccel_stvit_swin", ("stvit_swin",)),
        ("dinov2_with_registers", ("dinov2_with_registers",)),
        ("dinov2x", ()),
        ("resnet", ()),
        ("", ()),
    ],
)
def test_longest_file_name_counts(name, modules):
    assert modules_of(name) == modules


# Each check asks for a family that nothing before has asked for.
CHECKS = """
import json, logging, pickle, sys, threading
from pathlib import Path

folder, first = Path(sys.argv[1]), sys.argv[2]
if first == "package":
    import hf_tokaccel as ta
    loaded = []
    def load():
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        loaded.append("tokaccel_vit_msn" in CONFIG_MAPPING)
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [True] * 4, loaded
else:
    import transformers.models.auto.modeling_auto
    from transformers import AutoConfig, PreTrainedConfig
    class OwnConfig(PreTrainedConfig):
        model_type = "own"
    AutoConfig.register("own", OwnConfig)
    import hf_tokaccel as ta

import torch
import transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from hf_tokaccel.upstream import registered_types

if first == "transformers":
    assert CONFIG_MAPPING["own"] is OwnConfig

def ours():
    return {name.split(".")[2] for name in sys.modules if name.startswith("hf_tokaccel.models.")}

def unseen(*modules):
    assert not ours() & {*modules}, ours()

assert ours() <= {"vit_msn"}, ours()
small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
small["image_size"] = 32
ACCEL = ta.TokenClusteringConfig(cluster_after=1, cluster_grid=2)

# The table by name, and what is not in it.
unseen("clip")
assert ta.FAMILIES["clip_vision_model"].config.__name__ == "TokAccelCLIPVisionConfig"
assert "resnet" not in ta.FAMILIES and "vit_mae" not in ta.FAMILIES

# A counterpart by class: of a model, a configuration, and a part that is no model.
from hf_tokaccel.registry import accelerated_class
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel
unseen("dinov3_vit", "sam2", "pixio")
assert accelerated_class(DINOv3ViTModel).__name__ == "TokAccelDINOv3ViTModel"
assert accelerated_class(transformers.PixioConfig).__name__ == "TokAccelPixioConfig"
assert accelerated_class(Sam2HieraDetModel).__name__ == "TokAccelSam2HieraDetModel"
assert accelerated_class(transformers.ResNetModel) is None

# Accelerating a native model, and a native head on a backbone.
unseen("dpt", "dinov2_with_registers", "upernet")
model = transformers.DPTModel(transformers.DPTConfig(**small, patch_size=8, is_hybrid=False))
assert type(ta.accelerate(model, ACCEL)).__name__ == "TokAccelDPTModel"
backbone = transformers.Dinov2WithRegistersConfig(**small, patch_size=8, out_indices=[1, 2, 3, 4])
head = transformers.UperNetForSemanticSegmentation(
    transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, use_auxiliary_head=False)
)
assert type(ta.accelerate(head, ACCEL).backbone).__name__ == "TokAccelDinov2WithRegistersBackbone"

# Auto classes by type.
unseen("beit", "swinv2", "data2vec_vision", "segmenter")
config = AutoConfig.for_model("tokaccel_beit", **small, patch_size=8, out_indices=[1, 2, 3, 4])
assert type(AutoBackbone.from_config(config)).__name__ == "TokAccelBeitBackbone"
config = CONFIG_MAPPING["tokaccel_data2vec-vision"](**small, patch_size=8)
assert type(AutoModel.from_config(config)).__name__ == "TokAccelData2VecVisionModel"
# A head of Transformers whose backbone's type is ours.
config = transformers.UperNetConfig(backbone_config={"model_type": "tokaccel_swinv2", "accel": None})
assert type(config.backbone_config).__name__ == "TokAccelSwinv2Config"
assert AutoConfig.for_model("segmenter").model_type == "segmenter"

# Semantic tokens, by type and by host.
unseen("stvit", "stvit_swin", "stvit_video")
assert AutoConfig.for_model("tokaccel_stvit_swin").accel["method"] == "semantic_tokens"
unseen("stvit", "stvit_video")
from hf_tokaccel.semantic import SEMANTIC
config = ta.accelerate_config(
    transformers.ViTConfig(**small, patch_size=2), ta.SemanticTokenConfig(token_grid=(2, 2), pooling="max")
)
assert config.model_type == "tokaccel_stvit"
assert sorted(SEMANTIC) == ["deit", "swin", "vit", "vivit"]

# An image processor whose file does not say its type.
unseen("depth_anything")
(folder / "processor").mkdir()
(folder / "processor" / "config.json").write_text('{"model_type": "tokaccel_depth_anything"}')
(folder / "processor" / "preprocessor_config.json").write_text('{"do_resize": true}')
assert type(AutoImageProcessor.from_pretrained(folder / "processor")).__name__.startswith("DPTImageProcessor")

# A pipeline on a folder, in silence.
unseen("zoedepth", "vitmatte")
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
answer = pipeline("depth-estimation", model=str(folder / "dpt"))
assert type(answer.model).__name__ == "TokAccelDPTForDepthEstimation"
assert not [text for text in said if "not supported" in text], said

# Everything that lists.
unseen("zoedepth", "vitmatte")
try:
    ta.accelerate_config(transformers.ResNetConfig(), ACCEL)
except ValueError as error:
    assert "vitmatte" in str(error) and "zoedepth" in str(error), error
else:
    raise AssertionError
types = [name for name in CONFIG_MAPPING if name.startswith("tokaccel_")]
assert {*types} == {f.config.model_type for table in (ta.FAMILIES, SEMANTIC) for f in table.values()}
assert {*types} < {*CONFIG_MAPPING.keys()}
assert ta.FAMILIES["zoedepth"].config in CONFIG_MAPPING.values()
copied = pickle.loads(pickle.dumps(registered_types(CONFIG_MAPPING)))
assert type(copied) is dict and copied["tokaccel_vitmatte"] is ta.FAMILIES["vitmatte"].config
assert ta.support_table().count("\\n") == len(ta.FAMILIES) + 1
print(json.dumps(len(types)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with what a pipeline needs."""
    folder = tmp_path_factory.mktemp("saved")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.DPTConfig(**sizes, image_size=32, patch_size=8, neck_hidden_sizes=[8] * 4)
    config.fusion_hidden_size, config.backbone_out_indices = 16, [0, 1, 2, 3]
    model = transformers.DPTForDepthEstimation(config)
    ta.accelerate(model, ta.TokenClusteringConfig(cluster_after=1, cluster_grid=2)).save_pretrained(folder / "dpt")
    transformers.DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "dpt")
    return folder


@pytest.mark.parametrize("first", ["package", "transformers"])
def test_families_are_there_whatever_was_imported_first(folder, tmp_path, first):
    (tmp_path / "dpt").symlink_to(folder / "dpt")
    count = start(CHECKS, str(tmp_path), first, forked=first == "transformers")
    assert count == len(ta.FAMILIES) + len({f.config for f in SEMANTIC.values()})
