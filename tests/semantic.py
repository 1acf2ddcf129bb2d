"""The shared tester of models with semantic tokens: what all of them guarantee, inherited by each family."""

import copy
import json
import warnings

import fresh
import gpu
import numpy as np
import pytest
import torch
from family import FRESH_PROCESS, flatten, keys_of
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from transformers import AutoImageProcessor, AutoModel, pipeline

import hf_tokaccel as ta
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.semantic import initialize

CLUSTERING = {"cluster_after": 1, "cluster_grid": 4}


class SemanticTester:
    """Subclass as `Test...` and describe the family.

    Attributes:
        native: class of Transformers that is initialised from.
        ours: class with semantic tokens that it becomes.
        auto: the Auto class that loads folders of it; our own class where Auto classes cannot (backbones).
        accel: the setting under test, as a plain dict with its method.
        image_size: (height, width) of the test images.
        legacy_key: part of a parameter name in the key layout of Transformers 4.
        new_key: likewise in today's module names.
        untrained: parts of names, one of which is in every parameter that the plain model cannot give, and in no
            other.
        idle: names of parameters that the plain model does not use either.
        zeros: parts of names of what starts at zero.
        misfits: changes of the setting that do not fit this model, each with what the error must say.
        other: a change of the setting that fits this model.
        flop_ratio: to those of the plain model, must stay below.
        tolerance: between different orders of float32 arithmetic, relative to the largest output.
        strict_export: whether the export is also traced by Dynamo, as compiling is; a plain host says so and one with
            windows.
        secondary: whether another class of the family runs the same layers; then compiling, exporting and fresh
            processes are tested by `make test-slow` only.
        slow_graphs: see `FamilyTester`.
    """

    native = None
    ours = None
    auto = AutoModel
    accel = {"method": "semantic_tokens"}
    image_size = (32, 32)
    legacy_key = ""
    new_key = ""
    untrained = ()
    idle = ()
    zeros = ()
    misfits = ()
    other = {"generation_layers": 1, "global_centers": False}
    flop_ratio = 0.9
    tolerance = 1e-5
    strict_export = False
    secondary = False
    slow_graphs = False

    def config(self):
        """A tiny native configuration with large random weights; default ones output about 1e-8 and prove nothing."""
        raise NotImplementedError

    def plain_name(self, name):
        """Name in the plain model of a parameter of ours that it gave."""
        return name

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        torch.manual_seed(0)
        return cls.native(cls().config()).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def fast(cls, model):
        return cls.build(model)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, fast):
        """The exported graph, which is run as it is and by ONNX Runtime."""
        return torch.export.export(fast, (cls().images(),), strict=False)

    @classmethod
    def build(cls, model):
        """Initialised from the plain model; what is untrained is random, and large enough to be seen in the output."""
        fast, report = quietly(initialize, model, cls.accel)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name in report.untrained:
                parameter = fast.get_parameter(name)
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
                if "layer_scale" not in name and "norm" not in name:
                    parameter.sub_(1.0)
        return fast

    def images(self, batch=2, size=None, seed=1):
        return torch.randn(batch, 3, *(size or self.image_size), generator=torch.Generator().manual_seed(seed))

    @staticmethod
    def run(model, images, **kwargs):
        """Every tensor of the output, flattened."""
        with torch.no_grad():
            return flatten(model(images, **kwargs).to_tuple())

    def assert_close(self, actual, expected, tolerance=None):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert a.shape == b.shape
            scale = b.abs().max().item()
            assert (a - b).abs().max().item() <= (tolerance or self.tolerance) * scale + 1e-12

    def is_untrained(self, name):
        return any(part in name for part in self.untrained)

    # from a plain model

    def test_plain_model_gives_every_parameter_that_fits(self, model):
        with pytest.warns(UserWarning, match=r"not trained yet: \d+ .* untrained \(.*so train it"):
            fast = ta.accelerate(model, ta.SemanticTokenConfig.from_dict(self.accel))
        assert type(fast) is self.ours
        report = quietly(initialize, model, self.accel)[1]
        names = [name for name, _ in fast.named_parameters()]
        assert report.untrained == sorted(filter(self.is_untrained, names))
        assert report.initialized == sorted(set(names) - set(report.untrained))
        plain = dict(model.named_parameters())
        for name in report.initialized:
            parameter, source = fast.get_parameter(name), plain[self.plain_name(name)]
            assert parameter.data_ptr() != source.data_ptr()
            if parameter.shape == source.shape:
                assert torch.equal(parameter, source)
        assert all(self.plain_name(name) not in report.unused for name in report.initialized)

    @pytest.mark.parametrize("legacy", [True, False], ids=["legacy_keys", "new_keys"])
    def test_plain_folder_loads(self, model, tmp_path, legacy):
        model.save_pretrained(tmp_path, save_original_format=legacy)
        # Older versions of Transformers have not renamed every family yet: their new keys are the legacy ones.
        expected = [self.legacy_key] if legacy else [self.new_key, self.legacy_key]
        assert any(name in key for key in keys_of(tmp_path) for name in expected)
        with pytest.warns(UserWarning, match="not trained yet"):
            loaded = self.ours.from_pretrained(tmp_path, accel=self.accel)
        config = ta.accelerate_config(type(model.config).from_pretrained(tmp_path), self.accel)
        also = quietly(self.auto.from_pretrained, tmp_path, config=config)
        expected = quietly(initialize, model, self.accel)[0].state_dict()
        for copied in (loaded, also):
            assert type(copied) is self.ours
            assert copied.config.accel == config.accel
            for name, value in copied.state_dict().items():
                assert self.is_untrained(name) or torch.equal(value, expected[name]), name

    # saving and loading

    def test_saves_and_loads(self, fast, tmp_path):
        fast.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["accel"] == fast.config.accel
        assert written["accel"]["version"] == ta.__version__
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*not trained yet")
            loaded, info = self.auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(loaded) is self.ours
        self.assert_close(self.run(loaded.eval(), self.images()), self.run(fast, self.images()))

    def test_what_a_folder_lacks_gets_initial_values(self, fast, tmp_path):
        """Loading builds models without memory, so that only `_init_weights` can give these."""
        fast.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        lacking = [name for name in weights if self.is_untrained(name)]
        kept = {name: value for name, value in weights.items() if name not in lacking}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        loaded, info = self.auto.from_pretrained(tmp_path, output_loading_info=True)
        assert sorted(info["missing_keys"]) == sorted(lacking)
        constant = fast.config.accel["layer_scale_init_value"]
        for name in lacking:
            value = loaded.state_dict()[name]
            assert value.isfinite().all()
            if "layer_scale" in name:
                assert (value == torch.tensor(constant)).all()
            elif any(part in name for part in self.zeros):
                assert not value.any()
            elif "norm" not in name and value.is_floating_point() and value.numel() > 1:
                assert 0 < value.abs().max() < 2 or name.endswith(".bias")

    @pytest.mark.process
    def test_fresh_process_with_and_without_the_package_imported(self, fast, tmp_path):
        if self.auto.__name__.startswith("TokAccel"):
            pytest.skip("AutoBackbone of transformers 5.23 cannot load a folder")
        fast.save_pretrained(tmp_path)
        torch.save(self.images(), tmp_path / "images.pt")
        done = fresh.run(["-c", FRESH_PROCESS, tmp_path, self.auto.__name__])
        assert done.returncode == 0, done.stderr[-3000:]
        for remote in (True, False):
            self.assert_close(flatten(torch.load(tmp_path / f"output_{remote}.pt")), self.run(fast, self.images()))

    def test_pipeline_on_a_photograph(self, fast, tmp_path):
        if "ImageClassification" not in self.ours.__name__:
            pytest.skip("no task")
        fast.save_pretrained(tmp_path)
        height, width = self.image_size
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": height, "width": width}}))
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        image = Image.fromarray(data.astronaut())
        results = pipeline("image-classification", model=str(tmp_path), image_processor=processor)(image, top_k=2)
        logits = self.run(fast, processor(image, return_tensors="pt").pixel_values)[0]
        scores, labels = logits.softmax(-1)[0].topk(2)
        assert [result["label"] for result in results] == [fast.config.id2label[label.item()] for label in labels]
        assert [result["score"] for result in results] == pytest.approx(scores.tolist(), rel=1e-4)

    # what is computed

    def test_batch_equals_singles_without_random_numbers(self, fast):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        together = self.run(fast, self.images(3))
        assert torch.equal(torch.get_rng_state(), state)
        singles = [self.run(fast, image[None]) for image in self.images(3)]
        self.assert_close([torch.cat(parts) for parts in zip(*singles, strict=True)], together)

    @gpu.every_format()
    def test_nothing_of_ours_waits_for_a_gpu(self, fast, number_format):
        assert not gpu.waits(fast, self.run, self.images(), number_format)

    def test_every_parameter_acts(self, fast):
        """But for biases of keys, which softmax ignores."""
        module = copy.deepcopy(fast).train()
        expected = {name for name, _ in module.named_parameters() if not name.endswith("k_proj.bias")} - {*self.idle}
        plain = self.gradients(module)
        assert {name for name, value in plain.items() if value.abs().max() > 0} >= expected

    def test_checkpointing_changes_no_gradient(self, fast):
        module = copy.deepcopy(fast).train()
        plain = self.gradients(module)
        scale = max(value.abs().max() for value in plain.values())
        for reentrant in (True, False):
            module.gradient_checkpointing_enable({"use_reentrant": reentrant})
            again = self.gradients(module)
            assert again.keys() == plain.keys()
            assert all((again[name] - plain[name]).abs().max() <= 1e-5 * scale for name in plain)
            module.gradient_checkpointing_disable()

    def gradients(self, module):
        torch.manual_seed(0)  # drop path
        module.zero_grad()
        outputs = flatten(module(self.images()).to_tuple())
        # A mean of squares after a LayerNorm hardly depends on what comes before it.
        weights = torch.Generator().manual_seed(2)
        sum((output * torch.randn(output.shape, generator=weights)).sum() for output in outputs).backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    def test_labels_give_a_loss(self, fast):
        if "Classification" not in self.ours.__name__:
            pytest.skip("no labels")
        labels = torch.tensor([1, 2])
        output = fast(self.images(), labels=labels)
        assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))

    def test_sdpa_equals_eager(self, fast):
        eager = copy.deepcopy(fast)
        eager.set_attn_implementation("eager")
        assert fast.config._attn_implementation == "sdpa"
        self.assert_close(self.run(eager, self.images()), self.run(fast, self.images()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_near(self, fast, dtype):
        half = copy.deepcopy(fast).to(dtype)
        actual, expected = self.run(half, self.images().to(dtype)), self.run(fast, self.images())
        # Rounding of 8 (11) bits through all layers of large random weights.
        self.assert_close([a.float() for a in actual], expected, 0.2 if dtype is torch.bfloat16 else 0.05)

    def test_spends_fewer_flops(self, model, fast):
        def flops(module):
            with flop_counter() as counter, torch.no_grad():
                module(self.images())
            return counter.get_total_flops()

        assert flops(fast) < self.flop_ratio * flops(model)

    # graphs

    @pytest.mark.graph
    def test_compiles_without_graph_break(self, fast):
        torch._dynamo.reset()  # its limit of recompilations counts those of all the tests before
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        self.assert_close(self.run(compiled, self.images()), self.run(fast, self.images()))

    @pytest.mark.graph
    def test_exports(self, fast, program):
        programs = [program]
        if self.strict_export:
            programs.append(torch.export.export(fast, (self.images(),), strict=True))
        for program in programs:
            self.assert_close(self.run_module(program.module(), self.images()), self.run(fast, self.images()))

    @staticmethod
    def run_module(module, images):
        with torch.no_grad():
            output = module(images)
        return flatten(output.to_tuple() if hasattr(output, "to_tuple") else output)

    @pytest.mark.graph
    def test_onnx_runtime_agrees(self, fast, program, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        with torch.no_grad():
            torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        actual = session.run(None, {session.get_inputs()[0].name: self.images().numpy()})
        expected = self.run(fast, self.images())
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert np.abs(a - b.numpy()).max() <= 1e-4 * b.abs().max().item()

    # bad input

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"token_grid": 0}, r"token_grid=\(0, 0\) .*for example"),
            ({"token_grid": 999}, r"token_grid=.*for example token_grid"),
            ({"base_layers": 99}, r"base_layers=99 .*for example base_layers"),
            ({"generation_layers": 0}, r"generation_layers=0 .*for example generation_layers=2"),
            ({"pooling": "mean"}, r"pooling='mean' .*weighted, max.*for example"),
            ({"token_gird": 4}, r"unknown keys \['token_gird'\].*Allowed.*token_grid"),
        ],
    )
    def test_bad_settings_are_refused_when_they_are_given(self, model, fast, change, message):
        self.assert_refused(model, fast, change, message)

    def test_settings_that_do_not_fit_the_model_are_refused(self, model, fast):
        assert self.misfits
        for change, message in self.misfits:
            self.assert_refused(model, fast, change, message)

    def assert_refused(self, model, fast, change, message):
        bad = {**self.accel, **change}
        with pytest.raises(ValueError, match=message):
            ta.accelerate(model, bad)
        with pytest.raises(ValueError, match=message):
            ta.accelerate_config(model.config, bad)
        with pytest.raises(ValueError, match=message):
            type(fast.config)(**{**fast.config.to_dict(), "accel": bad})

    def test_no_other_method_and_none_is_refused(self, model, fast):
        config = type(fast.config)
        with pytest.raises(ValueError, match=r"method='token_clustering' is not valid.*give for example accel="):
            config(**{**fast.config.to_dict(), "accel": CLUSTERING})
        for accel in (None, CLUSTERING):
            with pytest.raises(ValueError, match=r"cannot be given another method, or none.*plain model"):
                ta.accelerate(fast, accel)
        with pytest.raises(ValueError, match=r"accel=None is not valid.*give its setting, for example"):
            copy.deepcopy(fast.config).accel = None
        with pytest.raises(ValueError, match=r"runs on the semantic tokens that it was built for.*plain model"):
            ta.accelerate(fast, self.accel)
        with pytest.raises(ValueError, match="no counterpart in Transformers"):
            ta.to_native(fast)
        with pytest.raises(ValueError, match="no counterpart in Transformers"):
            ta.accelerate_config(fast.config, None)

    def test_the_setting_of_a_built_model_stands(self, fast):
        before = self.run(fast, self.images())
        with pytest.raises(ValueError, match="cannot be assigned to the configuration of a built model"):
            fast.config.accel = {**fast.config.accel, **self.other}
        self.assert_close(self.run(fast, self.images()), before)


def quietly(function, *args, **kwargs):
    """Without the warning that a model is untrained, which has its own test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not trained yet")
        return function(*args, **kwargs)
