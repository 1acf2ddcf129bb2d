"""The benchmark: rivals of equal cost, modes, measurements, tables, and the command."""

import copy
import importlib.util
import json
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from family import TINY_DINOV2
from rich.console import Console
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    SamConfig,
    SamModel,
    SamVisionModel,
    SwinBackbone,
    SwinConfig,
)
from typer.testing import CliRunner

import hf_tokaccel as ta
from benchmarks import real_sizes
from hf_tokaccel.bench import BenchResult, Mode, bench, parse_mode, run, to_markdown, to_table
from hf_tokaccel.bench.architectures import ARCHITECTURES, build_architecture
from hf_tokaccel.bench.subject import load_subject, parse_device
from hf_tokaccel.cli import app
from hf_tokaccel.evaluation import count_gflops
from hf_tokaccel.images import parse_size
from hf_tokaccel.measure.agreement import Reading, mean_agreement, read_pixels
from hf_tokaccel.measure.flops import gflops_of_shape
from hf_tokaccel.measure.memory import peak_memory
from hf_tokaccel.measure.method import MethodAlone
from hf_tokaccel.quantization import is_quantized, quantize_int8
from hf_tokaccel.results.tables import WholeTable
from hf_tokaccel.rivals.build import BENCH, Subject, nearest, rivals_of

SETTING = {"cluster_after": 1, "cluster_grid": (4, 4), "window": 3, "neighbors": 4}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def depth():
    torch.manual_seed(0)
    backbone = Dinov2Config(**{key: value for key, value in TINY_DINOV2.items() if key != "model_type"})
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=4,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        initializer_range=0.2,
    )
    return DepthAnythingForDepthEstimation(config).eval()


@pytest.fixture(scope="module")
def result(depth):
    modes = [Mode(), Mode(attention="eager"), Mode("bfloat16"), Mode("int8")]
    settings = [SETTING, {**SETTING, "expansion": "delta"}]
    return bench(depth, noise(2, 3, 32, 32), settings, modes=modes, rounds=3, warmup=0, name="tiny [1]")


def of(result, kind, mode="float32, sdpa"):
    return [row for row in result.rows if (row.kind, row.mode) == (kind, mode)]


def test_every_rival_runs_in_every_mode_in_groups_that_begin_with_dense(result):
    kinds = ["dense", "clusters", "clusters", "grid pooling", "lower resolution", "token merging"]
    kinds.append("token merging, delta")
    assert [row.kind for row in result.rows] == 4 * kinds
    assert result.modes == ["float32, sdpa", "float32, eager", "bfloat16, sdpa", "int8, sdpa"]
    assert not result.notes


def test_rivals_cost_what_the_clusters_cost(result):
    clusters, delta = of(result, "clusters")
    (dense,), (pooled,), (lower,), (merged,) = (
        of(result, kind) for kind in ("dense", "grid pooling", "lower resolution", "token merging")
    )
    assert clusters.gflops < 0.95 * dense.gflops
    assert pooled.gflops < clusters.gflops
    # One patch more or less of 8 is a fifth of the cost; one token more or less in each layer is a fiftieth.
    assert lower.gflops == pytest.approx(clusters.gflops, rel=0.2)
    assert merged.gflops == pytest.approx(clusters.gflops, rel=0.02)
    assert merged.per_layer > 0
    assert lower.input_size[0] < 32
    assert all(row.gflops_ratio == row.gflops / dense.gflops for row in result.rows)
    assert delta.accel["expansion"] == "delta"


def test_agreement_is_with_the_dense_model_in_the_first_mode(result):
    error = {kind: of(result, kind)[0].agreement["relative_error"] for kind in ("dense", "clusters", "token merging")}
    assert error["dense"] == 0
    assert error["clusters"] > 0.001
    assert error["token merging"] > 0.001
    for mode, least, most in (("float32, eager", 0, 1e-5), ("bfloat16, sdpa", 1e-4, 0.3), ("int8, sdpa", 1e-4, 0.3)):
        assert least <= of(result, "dense", mode)[0].agreement["relative_error"] <= most


def test_times_are_whole_and_the_method_is_a_part(result):
    for row in result.rows:
        assert 0 < row.seconds["p10"] <= row.seconds["p50"] <= row.seconds["p90"]
        assert row.images_per_second == 2 / row.seconds["p50"]
        has_method = row.kind not in ("dense", "lower resolution")
        assert (row.method_seconds is not None) == has_method
        if has_method:
            assert row.method_seconds > 0
            assert row.layers_only_speedup > row.speedup
    assert all(row.speedup == 1 for row in result.rows if row.kind == "dense")
    assert result.rows[0].speedup_overall == 1


def test_result_is_written_and_read_and_shown(result, tmp_path):
    result.save(tmp_path / "bench.json")
    again = BenchResult.load(tmp_path / "bench.json")
    assert again.rows == result.rows
    assert again.environment["versions"]["torch"] == torch.__version__
    table, text = to_table(again), to_markdown(again)
    assert table.row_count == len(result.rows)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(result.rows)
    assert len({line.count("|") for line in lines}) == 1
    assert "rel. error to dense" in lines[0]
    assert f"{result.rows[1].gflops_ratio:.0%}".replace("%", " %") in lines[3]


def test_shapes_alone_cost_what_a_run_costs(depth):
    fast = ta.accelerate(depth, SETTING)
    for model in (depth, fast):
        assert gflops_of_shape(model, (32, 48)) == count_gflops(model, noise(1, 3, 32, 48))
    with torch.no_grad():
        assert fast(noise(1, 3, 32, 32)).predicted_depth.isfinite().all()  # nothing fake stayed behind


def test_the_method_alone_computes_what_the_pass_did(depth):
    fast = ta.accelerate(depth, SETTING)
    images, rebuilt = noise(2, 3, 32, 32), []
    with torch.inference_mode():
        alone = MethodAlone(fast, lambda: rebuilt.append(fast(images, output_hidden_states=True).hidden_states))
        clusters, *tokens = alone()
    assert alone.ran
    assert clusters.shape == (2, 1 + 16, 32)
    assert [part.shape for part in tokens] == 3 * [(2, 64, 32)]
    for ours, states in zip(tokens, rebuilt[0][2:], strict=True):
        assert torch.equal(ours, states[:, 1:])
    assert all("accel_make_track" not in module.__dict__ for module in fast.modules())
    assert not MethodAlone(depth, lambda: depth(images)).ran


def test_peak_memory_sees_what_a_call_allocates():
    used = peak_memory(lambda: torch.ones(2**24).sum(), torch.device("cpu"))
    if used is None:
        pytest.skip("this system does not say how much memory a process holds")
    assert 0.9 * 2**26 < used < 2 * 2**26


def test_nearest_finds_the_integer_and_counts_each_cost_once():
    seen = []

    def cost(value):
        seen.append(value)
        return value**2

    assert nearest(cost, 0, 100, 50) == 7
    assert len(seen) == len(set(seen)) < 10
    assert nearest(lambda value: -value, 100, 0, -99.8) == 100


def test_windows_leave_token_merging_out_and_say_so():
    torch.manual_seed(0)
    swin = SwinBackbone(
        SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
    )
    subject = Subject(ta.accelerate(swin.eval(), None), (32, 32))
    rows, notes = rivals_of(subject, [ta.TokenClusteringConfig(cluster_after=1, cluster_grid=2)], BENCH)
    assert [row.kind for row in rows] == ["dense", "clusters", "grid pooling", "lower resolution"]
    assert len(notes) == 1
    assert notes[0].startswith(
        "No token merging or token merging, delta beside 2x2 after 1: token merging leaves no grid"
    )


def test_agreement_of_each_kind_of_output():
    def agree(kind, value, dense):
        return mean_agreement(Reading(kind, torch.tensor(value)), Reading(kind, torch.tensor(dense)))

    assert agree("depth", [[[1.0, 4.0]]], [[[1.0, 3.0]]]) == {"relative_error": 0.25}
    classes = [[[0, 1], [1, 2]]]
    assert agree("classes", classes, [[[0, 1], [1, 1]]]) == {"same_class": 0.75}
    assert agree("classes", [[[1]]], classes) == {"same_class": 0.5}
    assert agree("features", [[[1.0, 0.0], [0.0, 2.0]]], [[[0.0, 1.0], [2.0, 0.0]]]) == {"cosine": 0.0}
    assert agree("features", [[[1.0, 0.0]]], [[[1.0, 0.0], [0.0, 2.0]]]) == {}


def test_pixels_are_read():
    read = read_pixels({"logits": torch.tensor([[[[0.0]], [[1.0]]]])})
    assert (read.kind, read.num_classes, read.value.tolist()) == ("classes", 2, [[[1]]])
    queries = {"class_queries_logits": torch.tensor([[[0.0, 9, 0]]]), "masks_queries_logits": torch.ones(1, 1, 2, 2)}
    read = read_pixels(queries)
    assert (read.kind, read.num_classes, read.value.tolist()) == ("classes", 2, [[[1, 1], [1, 1]]])
    for output in ({"loss": torch.zeros(1)}, {"pred_masks": torch.zeros(1, 1, 1, 2, 2)}):
        with pytest.raises(ValueError, match="nothing that the benchmark knows"):
            read_pixels(output)


def test_modes_are_read_and_refused():
    assert parse_mode("compile, bfloat16") == Mode("bfloat16", "sdpa", "compile")
    assert parse_mode("") == Mode()
    for text in ("bf16", "eager,sdpa"):
        with pytest.raises(ValueError, match="for example bfloat16,sdpa,compile"):
            parse_mode(text)
    with pytest.raises(ValueError, match="needs a GPU"):
        Mode(compile="reduce-overhead").check(torch.device("cpu"))
    with pytest.raises(ValueError, match="use bfloat16"):
        Mode("int8").check(torch.device("cuda"))


@pytest.mark.parametrize("backend", ["torch", "torchao"])
def test_int8_and_clusters_go_together_in_either_order(depth, backend):
    if backend == "torchao":
        pytest.importorskip("torchao", reason="the backend torchao needs that package: pip install torchao")
    images = noise(2, 3, 32, 32)
    fast = ta.accelerate(depth, SETTING)
    one, two = ta.accelerate(quantize_int8(depth, backend), SETTING), quantize_int8(fast, backend)
    with torch.no_grad():
        expected, *actual = (model(images).predicted_depth for model in (fast, one, two))
    assert is_quantized(one)
    assert not is_quantized(fast)
    assert not is_quantized(depth)
    assert torch.equal(*actual)
    error = ((actual[0] - expected).abs().mean() / expected.abs().mean()).item()
    assert 1e-5 < error < 0.1  # 8 bits, through four blocks
    with pytest.raises(ValueError, match="on a GPU use bfloat16"):
        quantize_int8(copy.deepcopy(depth).to(torch.bfloat16), backend)


def test_backends_of_int8_that_are_not_there(depth, monkeypatch):
    with pytest.raises(ValueError, match="must be one of torch, torchao"):
        quantize_int8(depth, "onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name))
    for call in (
        lambda: quantize_int8(depth, "torchao"),
        lambda: parse_mode("int8-torchao").check(torch.device("cpu")),
    ):
        with pytest.raises(ValueError, match="pip install torchao"):
            call()


def test_compiled_rows_run(depth):
    torch._dynamo.reset()
    mode = parse_mode("compile", backend="eager")
    rows = bench(depth, noise(1, 3, 32, 32), [SETTING], modes=[Mode(), mode], rivals=False, rounds=1, warmup=0).rows
    assert [row.mode for row in rows[len(rows) // 2 :]] == ["float32, sdpa, compile"] * (len(rows) // 2)
    for eager, compiled in zip(rows, rows[len(rows) // 2 :], strict=False):
        assert compiled.agreement["relative_error"] == pytest.approx(eager.agreement["relative_error"], abs=1e-4)


def test_on_a_gpu_throughput_stands_beside_latency(result):
    assert all(row.throughput is None for row in result.rows)
    assert "in a row" not in to_markdown(result)
    rows = [copy.copy(row) for row in result.rows]
    runners = [SimpleNamespace(call=lambda: None)] * len(rows)
    run._add_throughput(rows, runners, torch.zeros(2, 3, 8, 8))
    assert all(row.throughput > row.images_per_second for row in rows)
    shown = replace(result, rows=rows)
    assert "in a row ↑" in to_markdown(shown)
    assert f"| {rows[0].throughput:.2f} |" in to_markdown(shown)
    assert BenchResult.from_dict(json.loads(json.dumps(shown.to_dict()))) == shown


def test_rows_that_run_without_cuda_graphs_are_named():
    graphs, compiled = Mode(compile="reduce-overhead"), Mode(compile="compile")
    cases = [("sam", graphs, 1), ("vit", graphs, 0), ("swin", compiled, 1)]
    runners = [
        SimpleNamespace(rival=SimpleNamespace(name=name), mode=mode, skips=skips) for name, mode, skips in cases
    ]
    (note,) = run._without_graphs(runners)
    assert note.endswith(": sam (float32, sdpa, reduce-overhead)")
    assert run._without_graphs(runners[1:]) == []


def test_memory_of_cuda_graphs_is_that_of_recording_them(monkeypatch, depth):
    """Replays allocate nothing: measured later, memory would be next to nothing."""
    calls = []

    def compiled(self, model):
        def call(**arguments):
            calls.append("call")
            torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] += len(calls) == 1
            return model(**arguments)

        return call

    def memory(call, device):
        call()
        return calls.count("call")

    monkeypatch.setattr(Mode, "compiled", compiled)
    monkeypatch.setattr(run, "peak_memory", memory)
    (rival,) = rivals_of(Subject(depth, (32, 32)), [], {})[0]
    images, graphs = torch.zeros(1, 3, 32, 32), Mode(compile="reduce-overhead")
    runner = run._prepare(rival, graphs, images)
    assert (runner.memory, runner.skips, len(calls)) == (2, 1, 2)
    calls.clear()
    assert run._prepare(rival, Mode(), images).memory == 2


def test_an_attention_that_cannot_be_set_is_refused(depth):
    images = noise(1, 3, 32, 32)
    eager, fused = Mode(attention="eager"), Mode()
    for mode, other in ((eager, fused), (fused, eager)):
        base = mode.base(depth)
        mode.check_attention(depth, lambda base=base: base(images))
        with pytest.raises(ValueError, match=r"DepthAnythingForDepthEstimation (has no SDPA|cannot be switched)"):
            other.check_attention(depth, lambda base=base: base(images))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_the_size_of_their_checkpoints_and_take_their_settings(name):
    millions = {
        "segmenter-l-640": 333,
        "dpt-large-384": 343,
        "dpt-large-480x640": 343,
        "depth-anything-l-518": 335,
        "dinov3-l-1024": 303,
        "mask2former-swin-l-1152": 216,
        "sam-h-1024": 637,
    }
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions[name], rel=0.02)
    for setting in ARCHITECTURES[name].settings:
        ta.accelerate_config(model.config, setting, ARCHITECTURES[name].size)


def test_subjects_and_their_names():
    with pytest.raises(ValueError, match=r"architecture 'dpt' must be one of .*for example dpt-large-384"):
        build_architecture("dpt")
    assert parse_size("480x640") == (480, 640)
    assert parse_size("384") == (384, 384)
    for text in ("0", "4x", "big"):
        with pytest.raises(ValueError, match="for example 480x640"):
            parse_size(text)
    with pytest.raises(ValueError, match="for example cpu"):
        parse_device("abacus")
    subject = load_subject("depth", "64x96", "cpu", batch_size=3)
    assert subject.images.shape == (3, 3, 64, 96)


def test_of_models_that_take_prompts_the_vision_encoder_runs(tmp_path):
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
    vision |= {"window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32, "output_channels": 8, "num_pos_feats": 4}
    SamModel(SamConfig(vision_config=vision)).save_pretrained(tmp_path)
    subject = load_subject(str(tmp_path), device="cpu")
    assert type(subject.model) is SamVisionModel
    assert subject.images.shape == (1, 3, 64, 64)
    assert "vision encoder alone" in subject.notes[0]
    assert read_pixels(subject.model(subject.images)).kind == "features"


def test_the_command_prints_writes_and_refuses(depth, tmp_path):
    depth.save_pretrained(tmp_path / "model")
    arguments = ["bench", str(tmp_path / "model"), "--size", "32", "--device", "cpu", "--rounds", "1"]
    setting = ["--accel", "recommended:1.3,window=3"]
    run = CliRunner().invoke(app, [*arguments, *setting, "--output", str(tmp_path / "bench.json"), "--json"])
    assert run.exit_code == 0, run.output
    assert [row["kind"] for row in json.loads(run.stdout)["rows"]][:2] == ["dense", "clusters"]
    assert len(BenchResult.load(tmp_path / "bench.json").rows) == 6
    for wrong, said in (
        (["--mode", "fp8"], "for example bfloat16,sdpa,compile"),
        (["--size", "33"], "for example"),
        (["--accel", "cluster_after=9,cluster_grid=4x4"], "cluster_after=9 is not valid"),
        (["--accel", "recommended:99"], "speedup=99.0 cannot be reached"),
        (["--output", "bench.txt"], "must end in .json or .md"),
        (["--images", "missing.jpg"], "does not exist"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.split())


@pytest.mark.slow
def test_experiments_fill_their_page(depth, tmp_path, monkeypatch):
    depth.save_pretrained(tmp_path / "model")
    experiment = real_sizes.Experiment(str(tmp_path / "model"), about="a tiny model")
    for name, value in (
        ("EXPERIMENTS", {"tiny": experiment, "tiny-modes": experiment}),
        ("RESULTS", tmp_path),
        ("ROOT", tmp_path),
        ("PAGE", tmp_path / "benchmarks.md"),
    ):
        monkeypatch.setattr(real_sizes, name, value)
    (tmp_path / "benchmarks.md").write_text(
        "Before.\n<!-- begin: real_sizes -->\nold\n<!-- end: real_sizes -->\nAfter."
    )
    monkeypatch.setattr("sys.argv", ["real_sizes", "tiny", "--rounds", "1", "--warmup", "0", "--device", "cpu"])
    real_sizes.main()
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("Before.")
    assert text.endswith("After.")
    assert "old" not in text
    assert text.count("### tiny: a tiny model") == 1
    assert "tiny-modes" not in text
    assert "token merging" in text


def test_no_number_is_cut_off_on_a_narrow_terminal():
    table = WholeTable()
    table.add_column("model", overflow="fold")
    for index in range(8):
        table.add_column(f"column {index}", justify="right", no_wrap=True)
    table.add_row("a long name of a model that folds", *(f"{index}.12345678" for index in range(8)))
    for width in (40, 300):
        console = Console(width=width, file=StringIO())
        console.print(table, crop=False)
        text = console.file.getvalue()
        assert all(f"{index}.12345678" in text and f"column {index}" in text for index in range(8))
        assert ("a long name of a model that folds" in text) == (width == 300)
        assert "a long name" in text
