"""The shared tester: every guarantee is written once here and inherited by each family (see the README's list)."""

import copy
import itertools
import json
import threading
from unittest import mock

import fresh
import gpu
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import AutoModel

import hf_tokaccel as ta
from hf_tokaccel.hosts.tracked import TrackedBlock
from hf_tokaccel.measure.flops import flop_counter
from hf_tokaccel.settings.clustering import TokenClusteringConfig
from hf_tokaccel.settings.methods import as_accel
from hf_tokaccel.tuning.encoder import describe_encoder

# Small clusters with a small window keep centroids apart: exact ties would be broken differently by different graphs.
ACCEL = {"cluster_after": 1, "cluster_grid": [4, 4], "window": 3, "neighbors": 4, "inverse_temperature": "auto"}

# The backbone of heads under test.
TINY_DINOV2 = {
    "model_type": "dinov2",
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
    "initializer_range": 0.2,
}

FRESH_PROCESS = """
import sys, torch, transformers
folder, auto = sys.argv[1:]
assert "hf_tokaccel" not in sys.modules
cls = getattr(transformers, auto)
images = torch.load(folder + "/images.pt")
for remote in (True, False):  # the first load runs the shim only
    model = cls.from_pretrained(folder, **({"trust_remote_code": True} if remote else {})).eval()
    assert type(model).__module__.startswith("hf_tokaccel."), type(model)
    with torch.no_grad():
        output = model(images)
    torch.save([value for value in output.to_tuple() if value is not None], f"{folder}/output_{remote}.pt")
    model.save_pretrained(folder + "/again")
    model = cls.from_pretrained(folder + "/again", **({"trust_remote_code": True} if remote else {})).eval()
    with torch.no_grad():
        again = model(images)
    for a, b in zip(output.to_tuple(), again.to_tuple()):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)
"""


class FamilyTester:
    """Subclass as `Test...` and describe the family.

    Attributes:
        native: class of Transformers; None where it has none.
        auto: the Auto class that loads it; `AutoBackbone` cannot load folders (transformers 5.23 takes the path for a
            repository name), so backbones give their accelerated class.
        image_size: (height, width) of the test images.
        grid: their token grid.
        slices: of a video, each of which has a grid of its own.
        depth: blocks of the transformer.
        legacy_key: part of a parameter name in the key layout of Transformers 4.
        new_key: likewise in today's module names; equal to `legacy_key` where nothing was renamed.
        other_size: another image size that the native model accepts; None where it accepts its own only.
        flop_ratio: accelerated to dense FLOPs must stay below; tiny models may have most of theirs in the decoder.
        reentrant: whether native can do reentrant gradient checkpointing, which refuses tensors that blocks share.
        accel: the setting under test.
        forms: of its output, every combination of which is tested; in `secondary` classes every pair.
        speedup: that a recommended setting is asked for.
        block_tolerance: between the FLOPs of a block in closed form and as torch counts them.
        tolerance: between different orders of float32 arithmetic, relative to the largest output.
        single_graph: whether the native model can be compiled and exported as one graph. Where it cannot, the tests
            show that, and that ours compiles in several.
        strict_export: whether the export is also traced by Dynamo, as compiling is; one class of each kind of host
            says so: a plain one (ViT), a head on a backbone (DPT), one with windows (Swin).
        unchanged_states: hidden states before the clusters; None where they are those of blocks.
        secondary: whether another class, of this family or of one built alike, runs the same blocks by the same
            wrappers; then compiling, exporting and fresh processes, which take most of the time, are tested by
            `make test-slow` only.
        reads_values: whether the native forward asks for values of tensors, so that it waits for a GPU itself.
        takes_adaptive: whether clusters of free shape can take the place of a grid; windows refuse them.
        slow_graphs: whether the same holds, but for fresh processes, for a class whose blocks are its own, to keep the
            default run short: its wrappers are those of a family that is tested by default.
    """

    native = None
    auto = AutoModel
    image_size = (32, 32)
    grid = (8, 8)
    slices = 1
    depth = 4
    legacy_key = ""
    new_key = ""
    other_size = (32, 64)
    flop_ratio = 0.9
    reentrant = True
    accel = ACCEL
    forms = {
        "expansion": ("soft", "nearest", "delta"),
        "similarity_on": ("tokens", "normalized"),
        "reconstruct_after": (None, 3),
    }
    speedup = 1.25
    block_tolerance = 1e-6
    tolerance = 1e-5
    single_graph = True
    strict_export = False
    unchanged_states = None
    secondary = False
    slow_graphs = False
    reads_values = False
    takes_adaptive = True

    def config(self):
        """A tiny native configuration with large random weights; default ones output about 1e-8 and prove nothing."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        torch.manual_seed(0)
        return cls().build().eval()

    @pytest.fixture(scope="class")
    @classmethod
    def fast(cls, model):
        return ta.accelerate(model, cls.accel)

    @pytest.fixture(scope="class")
    @classmethod
    def native_output(cls, model):
        return cls().run(model, cls().images())

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, fast):
        """The exported graph, which is run as it is and by ONNX Runtime."""
        return torch.export.export(fast, (cls().images(),), strict=False)

    def build(self):
        return self.native(self.config())

    def images(self, batch=2, size=None, seed=1):
        return torch.randn(batch, 3, *(size or self.image_size), generator=torch.Generator().manual_seed(seed))

    @staticmethod
    def run(model, images, **kwargs):
        """Every tensor of the output, flattened."""
        with torch.no_grad():
            output = model(images, **kwargs)
        return flatten(output.to_tuple() if hasattr(output, "to_tuple") else output)

    def run_batch(self, model, images):
        """The tensors of the output whose first dimension is the batch."""
        return self.run(model, images)

    def assert_close(self, actual, expected, tolerance=None):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert a.shape == b.shape
            scale = b.abs().max().item()
            assert (a - b).abs().max().item() <= (self.tolerance if tolerance is None else tolerance) * scale + 1e-12

    def assert_differs(self, actual, expected, ratio=1e-3):
        assert any((a - b).abs().max() > ratio * b.abs().max() for a, b in zip(actual, expected, strict=True))

    # 1, 2: off and identity

    def test_off_is_bitwise_native(self, model, fast):
        native, images = self.run(model, self.images()), self.images()
        self.assert_differs(self.run(fast, images), native)
        for off in (ta.accelerate(model, None), ta.accelerate(fast, None)):
            assert all(torch.equal(a, b) for a, b in zip(self.run(off, images), native, strict=True))
            states = [self.run(module, images, output_hidden_states=True) for module in (off, model)]
            assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))

    @property
    def identity(self):
        """A setting whose clusters are the tokens."""
        return {**self.accel, "cluster_grid": list(self.grid), "iterations": 0, "expansion": "nearest"}

    def test_identity_plan_is_native(self, model, monkeypatch):
        # As many clusters as tokens of a window are refused, since they save nothing.
        monkeypatch.setattr(TokenClusteringConfig, "check_window_grid", lambda *args: None)
        expected, actual = (
            self.run(model, self.images()),
            self.run(ta.accelerate(model, self.identity, self.image_size), self.images()),
        )
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))

    @classmethod
    def all_forms(cls):
        return (every_pair if cls.secondary else every_combination)(cls.forms)

    def pytest_generate_tests(self, metafunc):
        if metafunc.function.__name__ == "test_every_form_runs_and_acts":
            metafunc.parametrize("form", self.all_forms(), ids=lambda form: "-".join(map(str, form.values())))

    def test_every_form_runs_and_acts(self, model, native_output, form):
        native, actual = native_output, self.run(ta.accelerate(model, self.accel | form), self.images())
        assert [a.shape for a in actual] == [b.shape for b in native]
        assert all(a.isfinite().all() for a in actual)
        self.assert_differs(actual, native, 1e-4)

    def test_recommended_setting_runs_and_can_be_switched_off(self, model):
        setting = recommend(type(self))
        fast, images = ta.accelerate(model, setting, self.image_size), self.images(1)
        native, actual = self.run(model, images), self.run(fast, images)
        assert [a.shape for a in actual] == [b.shape for b in native]
        assert all(a.isfinite().all() for a in actual)
        self.assert_differs(actual, native, 1e-4)
        off = self.run(ta.accelerate(fast, None), images)
        assert all(torch.equal(a, b) for a, b in zip(off, native, strict=True))

    def test_adaptive_clusters_run_or_are_refused(self, model, native_output):
        """Those of every head; `adaptive_family.py` holds one class of each family to the other guarantees."""
        setting = {"cluster_after": self.accel["cluster_after"], "clusters": 0.5}
        if not self.takes_adaptive:
            with pytest.raises(ValueError, match=r"clusters=0.5 .*None for .*cluster_grid=\(7, 7\)"):
                ta.accelerate(model, setting)
            return
        actual = self.run(ta.accelerate(model, setting), self.images())
        assert [a.shape for a in actual] == [b.shape for b in native_output]
        assert all(a.isfinite().all() for a in actual)
        self.assert_differs(actual, native_output, 1e-4)

    # frames of a clip that share a plan

    def test_equal_frames_that_share_a_plan_are_as_if_they_did_not(self, model, fast):
        if self.slices > 1:
            pytest.skip("the slices of one video differ")
        shared = ta.accelerate(model, {**self.accel, "shared_frames": 2})
        clips = self.images(2)[[0, 0, 1, 1]]
        self.assert_close(self.run(shared, clips), self.run(fast, clips))

    def test_frames_that_share_a_plan_do_so_within_their_clip_only(self, model, fast):
        count = max(self.slices, 2)
        shared = ta.accelerate(model, {**self.accel, "shared_frames": count})
        images = self.images(2 if self.slices > 1 else 4)
        clips = images[:, None] if self.slices > 1 else images.unflatten(0, (2, 2))
        together = self.run_batch(shared, images)
        singles = [self.run_batch(shared, clip) for clip in clips]
        self.assert_close([torch.cat(parts) for parts in zip(*singles, strict=True)], together)
        self.assert_differs(together, self.run_batch(fast, images), 1e-4)

    def test_frames_that_do_not_fill_clips_are_refused(self, model):
        shared = ta.accelerate(model, {**self.accel, "shared_frames": 5})
        with pytest.raises(ValueError, match=r"shared_frames=5 is not valid.*frames of this batch.*for example"):
            self.run(shared, self.images(2))

    # 4: no hidden state

    def test_batch_equals_singles_and_history_does_not_matter(self, fast):
        images = self.images(3)
        together = self.run_batch(fast, images)
        self.run(fast, self.images(2, seed=5))
        singles = [self.run_batch(fast, image[None]) for image in images]
        self.assert_close([torch.cat(parts) for parts in zip(*singles, strict=True)], together)

    def test_consumes_no_random_numbers(self, model, fast):
        """None but the host's: Mask2Former's decoder draws for layer drop in Transformers 5.14 even in eval mode."""
        states = []
        for module in (model, fast):
            torch.manual_seed(0)
            self.run(module, self.images())
            states.append(torch.get_rng_state())
        assert torch.equal(*states)

    def test_threads_do_not_disturb_each_other(self, fast):
        batches = [self.images(1, seed=seed) for seed in range(4)]
        expected = [self.run(fast, batch) for batch in batches]
        wrong = []

        def work(index):
            for _ in range(8):
                actual = self.run(fast, batches[index])
                if not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(actual, expected[index], strict=True)):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    # on a GPU

    @gpu.every_format()
    def test_nothing_of_ours_waits_for_a_gpu(self, model, fast, number_format):
        if self.reads_values:
            with pytest.raises(DataDependentOutputException):
                gpu.waits(model, self.run, self.images(), number_format)
            return
        assert not gpu.waits(fast, self.run, self.images(), number_format)

    # 5, 6: loading and saving

    @pytest.mark.parametrize("legacy", [True, False], ids=["legacy_keys", "new_keys"])
    def test_native_checkpoint_loads(self, model, tmp_path, legacy):
        model.save_pretrained(tmp_path, save_original_format=legacy)
        # Older versions of Transformers have not renamed every family yet: their new keys are the legacy ones.
        expected = [self.legacy_key] if legacy else [self.new_key, self.legacy_key]
        assert any(name in key for key in keys_of(tmp_path) for name in expected)
        native_config = type(model.config).from_pretrained(tmp_path)
        loaded, info = self.auto.from_pretrained(
            tmp_path, config=ta.accelerate_config(native_config, self.accel), output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        self.assert_close(
            self.run(loaded.eval(), self.images()), self.run(ta.accelerate(model, self.accel), self.images())
        )

    def test_shortest_auto_path(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = self.auto.from_pretrained(
            tmp_path, model_type=f"tokaccel_{model.config.model_type}", accel=self.accel
        )
        self.assert_close(
            self.run(loaded.eval(), self.images()), self.run(ta.accelerate(model, self.accel), self.images())
        )

    def test_saves_native_names_and_plain_transformers_loads_them(self, model, fast, tmp_path):
        model.save_pretrained(tmp_path / "native")
        fast.save_pretrained(tmp_path / "fast")
        assert keys_of(tmp_path / "fast") == keys_of(tmp_path / "native")
        fast.save_pretrained(tmp_path / "plain", native=True)
        assert '"accel"' not in (tmp_path / "plain" / "config.json").read_text()
        plain, info = self.native.from_pretrained(tmp_path / "plain", output_loading_info=True)
        plain = copy.deepcopy(plain)  # a file's tensors are not aligned, by which convolutions round
        assert type(plain) is self.native
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        expected = self.run(model, self.images())
        assert all(torch.equal(a, b) for a, b in zip(self.run(plain.eval(), self.images()), expected, strict=True))

    def test_setting_is_saved_and_can_be_switched_off(self, model, fast, tmp_path):
        fast.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["accel"] == fast.config.accel
        assert written["accel"]["version"] == ta.__version__
        off = copy.deepcopy(self.auto.from_pretrained(tmp_path, accel=None)).eval()  # aligned as `model` is
        assert all(
            torch.equal(a, b)
            for a, b in zip(self.run(off, self.images()), self.run(model, self.images()), strict=True)
        )

    @pytest.mark.process
    def test_fresh_process_with_and_without_the_package_imported(self, fast, tmp_path):
        if self.auto.__name__.startswith("TokAccel"):
            pytest.skip("AutoBackbone of transformers 5.23 cannot load a folder")
        fast.save_pretrained(tmp_path)
        torch.save(self.images(), tmp_path / "images.pt")
        done = fresh.run(["-c", FRESH_PROCESS, tmp_path, self.auto.__name__])
        assert done.returncode == 0, done.stderr[-3000:]
        expected = self.run(fast, self.images())
        for remote in (True, False):
            actual = flatten(torch.load(tmp_path / f"output_{remote}.pt"))
            self.assert_close(actual, expected)

    def test_accelerate_shares_parameters_and_leaves_the_model_alone(self, model, fast):
        assert {p.data_ptr() for p in model.parameters()} == {p.data_ptr() for p in fast.parameters()}
        assert list(model.state_dict()) == list(fast.state_dict())
        assert type(model) is self.native
        assert not any(map(is_accelerated, model.modules()))
        native = ta.to_native(fast)
        assert type(native) is self.native
        assert [type(part) for part in native.modules()] == [type(part) for part in model.modules()]
        assert not modules_of(native) & modules_of(model)
        assert not modules_of(fast) & modules_of(model)
        native.set_attn_implementation("eager")
        assert fast.config._attn_implementation == model.config._attn_implementation

    # 7: graphs

    @pytest.mark.graph
    def test_compiles_without_graph_break(self, model, fast):
        torch._dynamo.reset()  # its limit of recompilations counts those of all the tests before
        if not self.single_graph:
            with pytest.raises(RuntimeError, match="Data-dependent branching"):
                torch.compile(model, fullgraph=True, backend="eager")(self.images())
        compiled = torch.compile(fast, fullgraph=self.single_graph, backend="aot_eager")
        try:
            actual = self.run(compiled, self.images())
        except torch._dynamo.exc.Unsupported as error:
            # Before 2.14 the compiler breaks where a backbone alone looks for a head around it.
            if torch.__version__ >= "2.14" or "method `get` of class `ContextVar`" not in str(error):
                raise
            actual = self.run(torch.compile(fast, backend="aot_eager"), self.images())
        self.assert_close(actual, self.run(fast, self.images()))

    @pytest.mark.graph
    def test_exports(self, model, fast, request):
        if not self.single_graph:
            for strict in (False, True):
                with pytest.raises(RuntimeError, match=r"[Dd]ata-dependent"):
                    torch.export.export(model, (self.images(),), strict=strict)
            return
        programs = [request.getfixturevalue("program")]
        if self.strict_export:
            programs.append(torch.export.export(fast, (self.images(),), strict=True))
        for program in programs:
            self.assert_close(self.run(program.module(), self.images()), self.run(fast, self.images()))

    @pytest.mark.graph
    def test_onnx_runtime_agrees(self, fast, request, tmp_path):
        if not self.single_graph:
            pytest.skip("neither can the native model be exported, see test_exports")
        onnxruntime = pytest.importorskip("onnxruntime")
        with torch.no_grad():
            graph = torch.onnx.export(request.getfixturevalue("program"), dynamo=True, verbose=False)
        graph.save(tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        actual = session.run(None, {session.get_inputs()[0].name: self.images().numpy()})
        expected = self.run(fast, self.images())
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert np.abs(a - b.numpy()).max() <= 1e-4 * b.abs().max().item()

    # 8: training

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
    def test_traces(self, fast):
        """As torch.jit.trace does; test_swin has a quick case of it."""

        class Whole(torch.nn.Module):  # It knows the parameters, which a function would not.
            def __init__(self):
                super().__init__()
                self.model = fast

            def forward(whole, images):  # noqa: N805
                return tuple(self.run(whole.model, images))

        with torch.no_grad():  # A trace does not know those of `run`.
            traced = torch.jit.trace(Whole(), self.images(), check_trace=False)
            actual = traced(self.images(seed=5))
        self.assert_close(actual, self.run(fast, self.images(seed=5)))

    def test_gradients_flow_and_checkpointing_changes_nothing(self, model):
        fast = ta.accelerate(self.build(), self.accel).train()

        def gradients():
            torch.manual_seed(0)  # dropout
            fast.zero_grad()
            outputs = flatten(fast(self.images()).to_tuple())
            sum(output.square().mean() for output in outputs if output.requires_grad).backward()
            return {name: p.grad.clone() for name, p in fast.named_parameters() if p.grad is not None}

        plain = gradients()
        first = next(name for name in plain if ".0." in name and name.endswith("weight"))
        assert plain[first].abs().max() > 0  # through the clustering into the first block
        if not self.native.supports_gradient_checkpointing:
            with pytest.raises(ValueError, match=r"does not support (gradient|activation) checkpointing"):
                fast.gradient_checkpointing_enable()
            return
        for reentrant in (True, False) if self.reentrant else (False,):
            fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
            again = gradients()
            assert again.keys() == plain.keys()
            scale = max(value.abs().max() for value in plain.values())
            assert all((again[name] - plain[name]).abs().max() <= 1e-5 * scale for name in plain)
            fast.gradient_checkpointing_disable()

    # 9: what is read has native shapes

    def test_hidden_states_have_native_shapes_and_order(self, model, fast):
        expected = model(self.images(), output_hidden_states=True)
        actual = fast(self.images(), output_hidden_states=True)
        assert list(actual.keys()) == list(expected.keys())
        assert [h.shape for h in actual.hidden_states] == [h.shape for h in expected.hidden_states]
        unchanged = as_accel(self.accel).starts[0] + 1 if self.unchanged_states is None else self.unchanged_states
        for index in range(unchanged):  # still at full resolution
            assert torch.equal(actual.hidden_states[index], expected.hidden_states[index])
        self.assert_differs([actual.hidden_states[-1]], [expected.hidden_states[-1]])
        in_order = fast(self.images(), output_hidden_states=True, return_dict=False)
        assert all(torch.equal(a, b) for a, b in zip(flatten(in_order), flatten(actual.to_tuple()), strict=True))

    def test_reading_hidden_states_does_not_change_the_output(self, fast):
        with torch.no_grad():
            plain = fast(self.images())
            output = fast(self.images(), output_hidden_states=True)
        self.assert_close(flatten(tuple(output[key] for key in plain)), flatten(plain.to_tuple()))

    def test_attentions_inside_the_span_are_those_of_the_clusters(self, fast):
        fast = ta.accelerate(fast, self.accel)
        fast.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = fast(self.images(), output_attentions=True).attentions
        assert len(attentions) == self.depth
        prefix = attentions[0].shape[-1] - self.slices * self.grid[0] * self.grid[1]
        setting = as_accel(self.accel)
        for index, count in zip(setting.starts, setting.counts(self.grid[0] * self.grid[1]), strict=True):
            length = prefix + self.slices * count
            assert attentions[index].shape[-2:] == (length, length)

    def test_other_image_sizes(self, model, fast):
        if self.other_size is None:
            pytest.skip("the host accepts the size of its configuration only")
        images = self.images(size=self.other_size)
        assert [a.shape for a in self.run(fast, images)] == [b.shape for b in self.run(model, images)]

    @pytest.fixture(scope="class")
    @classmethod
    def flops(cls, model, fast):
        """FLOPs of each module by its name, dense and on clusters."""
        counters = [cls().count(module) for module in (model, fast)]
        # Names begin with that of the class.
        return [
            {name.partition(".")[2]: sum(count.values()) for name, count in counter.get_flop_counts().items()}
            for counter in counters
        ]

    def count(self, module):
        with flop_counter() as counter, torch.no_grad():
            module(self.images())
        return counter

    def test_spends_fewer_flops(self, flops):
        dense, clustered = (counts[""] for counts in flops)
        assert clustered < self.flop_ratio * dense

    def test_blocks_are_described_as_they_run(self, fast, flops):
        """From that description settings for a speed-up are found."""
        images, accel = self.images(), as_accel(fast.config.accel)
        encoder = describe_encoder(fast.config, tuple(images.shape[-2:]))
        blocks = {name: part for name, part in fast.named_modules() if isinstance(part, TrackedBlock)}
        path, layers = next(iter(blocks)).rpartition(".")[0], blocks
        clustered = encoder.clusters(accel)
        # Hosts with stages track the blocks of one.
        first = 0 if len(layers) == len(encoder.blocks) else encoder.span_of(accel.starts[0])[0]
        for counts, shapes in zip(flops, ([None] * len(clustered), clustered), strict=True):
            for index, block in enumerate(encoder.blocks[first : first + len(layers)], first):
                counted = counts[f"{path}.{index - first}"] / len(images)
                assert block.flops(shapes[index]) == pytest.approx(counted, rel=self.block_tolerance)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite(self, model, dtype):
        native, images = type(model)(model.config).to(dtype).eval(), self.images().to(dtype)
        try:
            outputs = self.run(ta.accelerate(native, self.accel), images)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
                self.run(native, images)
            pytest.skip(f"the host of this version of Transformers cannot either: {error}")
        assert all(output.isfinite().all() for output in outputs)

    # 10: bad input

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cluster_after": 99}, "cluster_after=99 .*between 0 and"),
            ({"reconstruct_after": 99}, "reconstruct_after=99"),
            ({"window": 4}, "window=4 .*window=5"),
            ({"neighbors": 0}, "neighbors=0 .*neighbors=20"),
            ({"shared_frames": 0}, "shared_frames=0 .*shared_frames=4"),
            ({"cluster_gird": 4}, "unknown keys .*cluster_gird.*Allowed"),
            ({"cluster_grid": [0, 4]}, "cluster_grid"),
            ({"expansion": "sift"}, "expansion='sift' .*soft"),
            ({"inverse_temperature": -1.0}, "inverse_temperature=-1.0"),
        ],
    )
    def test_bad_settings_are_refused_when_they_are_given(self, model, fast, change, message):
        bad = {**self.accel, **change}
        with pytest.raises(ValueError, match=message):
            ta.accelerate(model, bad)
        with pytest.raises(ValueError, match=message):
            ta.accelerate_config(model.config, bad)
        with pytest.raises(ValueError, match=message):
            type(fast.config)(**{**fast.config.to_dict(), "accel": bad})
        assert not any(map(is_accelerated, model.modules()))

    @property
    def large(self):
        """An image size that a setting fits which none of the test's images do."""
        return tuple(2 * side for side in self.image_size)

    def test_more_clusters_than_tokens_are_refused(self, model):
        grid = [self.grid[0] + 1, self.grid[1]]
        with pytest.raises(ValueError, match=r"cluster_grid=\(.*at most as many clusters as tokens.*for example"):
            self.run(ta.accelerate(model, {**self.accel, "cluster_grid": grid}, self.large), self.images())
        with pytest.raises(ValueError, match="cluster_grid"):
            ta.accelerate(model, {**self.accel, "cluster_grid": grid}, image_size=self.image_size)
        with pytest.raises(ValueError, match=r"cluster_grid=\(999, 999\) .*at most as many clusters"):
            ta.accelerate_config(model.config, {**self.accel, "cluster_grid": [999, 999]})

    def test_image_that_is_no_multiple_of_the_patch_is_refused(self, fast):
        images = self.images(size=(self.image_size[0] + 1, self.image_size[1]))
        with pytest.raises(ValueError, match=r"multiples of the patch size .*for example"):
            self.run(fast, images)


def every_combination(parts):
    """Settings with one of the values of each part."""
    return [dict(zip(parts, values, strict=True)) for values in itertools.product(*parts.values())]


def every_pair(parts):
    """Of three parts half of these, in which every two values of different parts still meet."""
    if len(parts) != 3 or any(len(values) == 1 for values in parts.values()):
        return every_combination(parts)
    # Whichever two values one takes, one of the third part makes the sum of the places even.
    forms = every_combination(parts)
    return [form for form in forms if sum(parts[part].index(value) for part, value in form.items()) % 2 == 0]


def recommend(tester):
    """The recommended setting of a family's tiny model."""
    # A ratio of the blocks: of some tiny models nearly all is the head, which nothing accelerates.
    with mock.patch("hf_tokaccel.tuning.recommended.whole_flops", return_value=None):
        return ta.recommended(tester().config(), tester.image_size, tester.speedup)


def is_accelerated(part):
    """Segmenter's native classes are in this package too."""
    return isinstance(part, TrackedBlock) or type(part).__name__.startswith("TokAccel")


def flatten(values):
    """Tensors of nested tuples in order; sizes are left out."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, int):
        return []
    return [tensor for value in values if value is not None for tensor in flatten(value)]


def modules_of(model):
    """Module objects, those in plain lists too."""
    listed = (
        item for part in model.modules() for value in vars(part).values() if isinstance(value, list) for item in value
    )
    return {id(part) for part in (*model.modules(), *listed) if isinstance(part, torch.nn.Module)}


def keys_of(folder):
    """Parameter names in a folder's safetensors file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())
