"""What holds across families: heads on any accelerated backbone, refusals, saving, pipelines, big-model loading."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
import torch
import torch._dynamo
from adaptive_family import ADAPTIVE
from family import ACCEL, TINY_DINOV2
from PIL import Image
from test_dinov2 import Dinov2Tester
from test_dpt import DPTTester
from test_vit import ViTTester
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    BertConfig,
    BertModel,
    ConvNextConfig,
    DepthAnythingConfig,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    PromptDepthAnythingConfig,
    UperNetConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    VitMatteConfig,
    ViTModel,
    ZoeDepthConfig,
    pipeline,
)
from transformers.utils.generic import find_labels

import hf_tokaccel as ta
from hf_tokaccel.checkpoint import load_checkpoint
from hf_tokaccel.hub.files import check_folder


def run(model, images):
    with torch.no_grad():
        return model.eval()(images)[0]


def scaled(model):
    """Default random heads are tiny; see the shared tester."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def detr():
    """A head that has no accelerated class of its own."""
    parts = ("encoder", "decoder")
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    config = DetrConfig(
        backbone_config=TINY_DINOV2 | {"reshape_hidden_states": True},
        d_model=16,
        num_queries=4,
        **{f"{part}_{name}": size for part in parts for name, size in sizes.items()},
    )
    return scaled(DetrForObjectDetection(config))


def test_a_native_head_on_a_supported_backbone_is_accelerated(detr, tmp_path):
    fast, images = ta.accelerate(detr, ACCEL), Dinov2Tester().images()
    assert type(fast) is DetrForObjectDetection
    assert type(fast.model.backbone.model).__name__ == "TokAccelDinov2Backbone"
    dense, actual = run(detr, images), run(fast, images)
    assert (dense - actual).abs().max() > 1e-3 * dense.abs().max()
    fast.save_pretrained(tmp_path)
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.allclose(run(loaded, images), actual, atol=1e-4)
    for off in (ta.accelerate(fast, None), ta.to_native(fast)):
        assert torch.equal(run(off, images), dense)
    assert type(ta.to_native(fast).model.backbone.model).__name__ == "Dinov2Backbone"


@pytest.mark.parametrize("make", [lambda c: c, lambda c: BertModel(c)], ids=["config", "model"])
def test_unsupported_families_are_refused_and_the_supported_ones_listed(make):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    call = ta.accelerate_config if make(config) is config else ta.accelerate
    families = ", ".join(sorted(ta.FAMILIES))
    with pytest.raises(ValueError, match=rf"'bert' cannot be accelerated\. .*: {families}, and .*example"):
        call(make(config), ACCEL)


@pytest.mark.parametrize(
    "make", [DepthAnythingConfig, DPTConfig, PromptDepthAnythingConfig, UperNetConfig, VitMatteConfig, ZoeDepthConfig]
)
def test_a_head_on_an_unsupported_backbone_is_refused(make):
    config = make(backbone_config=ConvNextConfig(out_features=["stage1", "stage2", "stage3", "stage4"]))
    with pytest.raises(ValueError, match=f"'{make.model_type}' on a 'convnext' backbone cannot be accelerated"):
        ta.accelerate_config(config, ACCEL)


def test_every_family_on_another_host_refuses_what_is_none():
    families = {name: family.config for name, family in ta.FAMILIES.items() if family.config.accel_host_path}
    assert len(families) > 20
    for name, cls in families.items():
        config = cls()
        config.__dict__["backbone_config"] = ConvNextConfig()
        owner, _, last = config.accel_host_path.rpartition(".")
        # Past the checks of types, which some hosts have and others have not.
        (getattr(config, owner) if owner else config).__dict__[last] = ConvNextConfig()
        with pytest.raises(ValueError, match=f"'{name}' on a 'convnext' backbone .*cannot be accelerated"):
            config.accel_host()


@pytest.mark.parametrize("accel", ["fast", 3, [1, 2]])
def test_what_is_no_setting_is_refused(accel):
    said = "must be None, a dict, a TokenClusteringConfig or a SemanticTokenConfig|one key=value each"
    with pytest.raises(ValueError, match=said):
        ta.accelerate_config(ViTTester().config(), accel)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="give a PreTrainedModel"):
        ta.accelerate(torch.nn.Linear(2, 2), ACCEL)


def test_a_setting_assigned_later_is_checked_too():
    config = ta.accelerate_config(ViTTester().config(), ACCEL)
    before = dict(config.accel)
    with pytest.raises(ValueError, match=r"cluster_after=4 .*between 0 and 3"):
        config.accel = {**ACCEL, "cluster_after": 4}
    assert config.accel == before


@pytest.mark.parametrize("accel", [ACCEL, None], ids=["on", "off"])
def test_a_setting_cannot_be_assigned_to_a_built_model_which_would_ignore_it(accel):
    model = ta.accelerate(DPTForDepthEstimation(DPTTester().config()), accel)
    with pytest.raises(ValueError, match=r"would ignore it: use model = hf_tokaccel\.accelerate"):
        model.config.accel = {**ACCEL, "cluster_after": 2}
    model.config.accel = model.config.accel
    copy.deepcopy(model.config).accel = {**ACCEL, "cluster_after": 2}


def copies(model):
    yield model
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    yield torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def test_nothing_that_a_built_model_would_ignore_can_be_done_to_its_setting(tmp_path):
    for built in list(copies(ta.accelerate(ViTModel(ViTTester().config()), ADAPTIVE))):
        config, before = built.config, built.config.to_dict()["accel"]
        changes = [
            lambda c: setattr(c, "accel", ACCEL),
            lambda c: setattr(c, "accel", None),
            lambda c: delattr(c, "accel"),
            lambda c: c.accel.update(clusters=[0.9, 0.8]),
            lambda c: c.accel.__setitem__("clusters", [0.9, 0.8]),
            lambda c: c.accel.__ior__({"expansion": "nearest"}),
            lambda c: c.accel.pop("expansion"),
            lambda c: c.accel["clusters"].__setitem__(0, 0.9),
            lambda c: c.accel["clusters"].append(0.9),
        ]
        for change in changes:
            with pytest.raises(ValueError, match=r"hf_tokaccel\.accelerate"):
                change(config)
        with pytest.raises(ValueError, match=r"hf_tokaccel\.accelerate"):
            built.accel = None
        assert config.accel == before
        built.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["accel"] == before
        object.__setattr__(config, "accel", {**before, "expansion": "nearest"})
        with pytest.raises(ValueError, match=r"the model runs with .*saving would give another model"):
            built.save_pretrained(tmp_path)


def test_a_setting_that_was_read_can_be_changed_in_a_copy():
    config = ta.accelerate_config(ViTTester().config(), ADAPTIVE)
    values = config.to_dict()["accel"]
    values["clusters"][1] = 0.3
    assert ta.accelerate_config(config, values).accel["clusters"] == [0.5, 0.3]
    assert ta.accelerate_config(config, {**config.accel, "clusters": [0.4, 0.2]}).accel["clusters"] == [0.4, 0.2]
    assert config.accel["clusters"] == [0.5, 0.25]


def test_a_backbone_of_a_native_head_keeps_its_setting_in_copies(detr):
    fast = ta.accelerate(detr, ACCEL)
    for model in (fast, copy.deepcopy(fast)):
        for config in (model.config.backbone_config, model.model.backbone.model.config):
            with pytest.raises(ValueError, match="would ignore it"):
                config.accel = None


def test_a_plain_model_of_a_folder_of_ours_has_no_setting(tmp_path):
    """Transformers keeps the fields that its class does not know."""
    model = DPTForDepthEstimation(DPTTester().config())
    ta.accelerate(model, ACCEL).save_pretrained(tmp_path / "ours")
    plain = DPTForDepthEstimation.from_pretrained(tmp_path / "ours")
    plain.save_pretrained(tmp_path / "stale")
    assert "accel" in json.loads((tmp_path / "stale" / "config.json").read_text())
    stale = AutoConfig.from_pretrained(tmp_path / "stale")
    assert type(stale) is DPTConfig
    loaded = load_checkpoint(tmp_path / "stale")
    assert loaded.accel is None
    with pytest.raises(ValueError, match="holds a plain 'dpt' model"):
        check_folder(tmp_path / "stale")
    clean = [ta.to_native_config(stale), ta.to_native(plain).config, ta.to_native(loaded.model).config]
    assert not any({"accel", "auto_map"} & vars(config).keys() for config in clean)
    assert ta.accelerate(plain, None).config.accel is None
    ta.to_native(plain).save_pretrained(tmp_path / "clean")
    AutoModelForDepthEstimation.from_pretrained(tmp_path / "clean", trust_remote_code=True)


def test_every_form_of_a_setting_is_stored_alike():
    setting = ta.TokenClusteringConfig.from_dict(ACCEL)
    stored = [ta.accelerate_config(ViTTester().config(), form).accel for form in (ACCEL, setting, setting.to_dict())]
    assert stored[0] == stored[1] == stored[2]
    assert json.loads(json.dumps(stored[0])) == stored[0]


def test_attention_implementation_and_name_survive():
    config = ViTTester().config()
    config._attn_implementation = "eager"
    config._name_or_path = "someone/model"
    fast = ta.accelerate_config(config, ACCEL)
    assert (fast._attn_implementation, fast._name_or_path) == ("eager", "someone/model")
    model = ViTModel(config)
    fast = ta.accelerate(model, ACCEL)
    fast.set_attn_implementation("sdpa")
    assert fast.layers._modules["0"].attention.config._attn_implementation == "sdpa"
    assert model.layers[0].attention.config._attn_implementation == "eager"


def test_quantised_or_patched_blocks_are_kept(monkeypatch):
    class Patched(torch.nn.Linear):
        pass

    model = ViTModel(ViTTester().config()).eval()
    original = model.layers[2].mlp.fc1
    model.layers[2].mlp.fc1 = Patched(original.in_features, original.out_features)
    fast = ta.accelerate(model, ACCEL)
    assert type(fast.layers._modules["2"].mlp.fc1) is Patched
    assert fast.layers._modules["2"].mlp.fc1.weight is model.layers[2].mlp.fc1.weight
    assert type(ta.to_native(fast).layers[2].mlp.fc1) is Patched


def test_registering_for_an_auto_class_copies_no_source(tmp_path):
    model = ta.accelerate(ViTModel(ViTTester().config()), ACCEL)
    model.register_for_auto_class("AutoModel")
    model.config.register_for_auto_class()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {"tokaccel_hub.py"}
    assert (tmp_path / "tokaccel_hub.py").read_text().count("\n") == 1


def test_plain_models_still_load_as_themselves(tmp_path):
    DPTForDepthEstimation(DPTTester().config()).save_pretrained(tmp_path)
    assert type(AutoModelForDepthEstimation.from_pretrained(tmp_path)) is DPTForDepthEstimation


def test_a_type_from_the_file_does_not_shadow_ours(tmp_path):
    ViTTester().config().save_pretrained(tmp_path)
    config = type(ta.accelerate_config(ViTTester().config(), ACCEL)).from_pretrained(tmp_path, accel=ACCEL)
    assert config.model_type == "tokaccel_vit"
    assert AutoConfig.from_pretrained(tmp_path, model_type="tokaccel_vit", accel=ACCEL).model_type == "tokaccel_vit"


def test_image_processor_loads_from_the_type_alone(tmp_path):
    """Older folders lack the processor's type, so it follows from the model's."""
    ta.accelerate(DPTForDepthEstimation(DPTTester().config()), ACCEL).save_pretrained(tmp_path)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    values = json.loads(path.read_text())
    del values["image_processor_type"]
    path.write_text(json.dumps(values))
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__name__.startswith("DPTImageProcessor")


@pytest.mark.parametrize(
    ("task", "cls", "tester", "processor"),
    [
        ("image-classification", ViTForImageClassification, ViTTester, ViTImageProcessor),
        ("image-segmentation", DPTForSemanticSegmentation, DPTTester, DPTImageProcessor),
    ],
)
def test_pipelines(tmp_path, task, cls, tester, processor):
    scaled(ta.accelerate(cls(tester().config()), ACCEL)).save_pretrained(tmp_path)
    processor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    results = pipeline(task, model=str(tmp_path))(image)
    assert results
    assert all("label" in result for result in results)


def test_trainer_finds_the_labels():
    """It reads the signature of forward, which must be the host's."""
    for model in ta.FAMILIES["vit"].models + ta.FAMILIES["dpt"].models:
        native = next(base for base in model.__mro__ if base.__module__.startswith("transformers.models."))
        assert find_labels(model) == find_labels(native)
    assert find_labels(ta.FAMILIES["vit"].models[1]) == ["labels"]


@pytest.mark.parametrize("native", [False, True], ids=["accelerated_then_dispatched", "dispatched_then_accelerated"])
def test_disk_and_cpu_offload_are_exact(tmp_path, native):
    model = scaled(DPTForDepthEstimation(DPTTester().config()))
    fast = ta.accelerate(model, ACCEL)
    (model if native else fast).save_pretrained(tmp_path)
    device_map = {
        "dpt.embeddings": "cpu",
        "dpt.encoder": "disk",
        "dpt.layernorm": "cpu",
        "neck": "disk",
        "head": "cpu",
    }
    offloaded = AutoModelForDepthEstimation.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    images = DPTTester().images()
    offloaded = ta.accelerate(offloaded, ACCEL) if native else offloaded
    assert torch.allclose(run(offloaded, images), run(fast, images), atol=1e-5)


@pytest.mark.slow
def test_a_second_image_size_compiles_too():
    """torch.compile then takes the size for a symbol; the grid must not become one."""
    torch._dynamo.reset()
    fast = ta.accelerate(scaled(DPTForDepthEstimation(DPTTester().config())), ACCEL)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    for size in ((32, 32), (48, 48), (64, 64)):
        images = DPTTester().images(size=size)
        assert torch.allclose(run(compiled, images), run(fast, images), atol=1e-4)


def test_observation_is_per_thread_and_gives_the_map():
    fast = ta.accelerate(DPTForDepthEstimation(DPTTester().config()), ACCEL)
    with ta.observe_clusters() as seen:
        run(fast, DPTTester().images())
    run(fast, DPTTester().images())
    assert len(seen) == 1
    assert seen[0].grid == (8, 8)
    labels = seen[0].labels()
    assert labels.shape == (2, 8, 8)
    assert labels.min() >= 0
    assert labels.max() < 16


def test_a_loop_that_does_not_pass_the_track_on_is_noticed(monkeypatch):
    """Never a silent no-op: what another version of Transformers might do."""
    fast = ta.accelerate(ViTModel(ViTTester().config()), ACCEL)
    monkeypatch.setattr("hf_tokaccel.hosts.tracked.TrackedBlock.__call__", lambda self, x, *a, **k: self.forward(x))
    with pytest.raises(RuntimeError, match="0 of 4 blocks ran through the acceleration"):
        run(fast, ViTTester().images())


def test_old_checkpoint_configurations_are_read():
    """config.json of DPT as it was written in the days of Transformers 4."""
    old = {"model_type": "dpt", "torch_dtype": "float32", "transformers_version": "4.19.0", "backbone_config": None}
    config = ta.accelerate_config(DPTConfig.from_dict({**old, "hidden_size": 32, "num_attention_heads": 2}), ACCEL)
    assert config.accel["cluster_after"] == 1


def test_images_of_many_sizes_may_be_compiled():
    """Each is a graph of its own, and PyTorch gives up after eight by default; a graph takes seconds."""
    ta.accelerate(ViTModel(ViTTester().config()), ACCEL)
    assert torch._dynamo.config.recompile_limit >= 64
