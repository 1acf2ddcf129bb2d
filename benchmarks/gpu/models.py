"""Whole models with random weights in bfloat16: dense, clustered as released, adaptive, and on a smaller image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

import hf_tokaccel as ta
from benchmarks.gpu.parity import testers
from benchmarks.gpu.timing import Call, count_kernels, graph_or_reason, refused, timed
from hf_tokaccel.bench.architectures import ARCHITECTURES
from hf_tokaccel.bench.modes import Mode
from hf_tokaccel.measure.compilation import compile_model
from hf_tokaccel.measure.flops import gflops_of_shape
from hf_tokaccel.measure.memory import peak_memory
from hf_tokaccel.measure.method import MethodAlone

# Shares of the tokens; of a ViT-L's blocks about 0.7 and 0.5 of the FLOPs are left. A step costs half of a block or
# more, so there are few, of one round each.
ADAPTIVE = {
    "adaptive, careful": {"cluster_after": 2, "clusters": 0.7, "round_share": 0.5},
    "adaptive, half": {"cluster_after": 2, "clusters": 0.5, "round_share": 0.5},
    "adaptive, three steps": {"cluster_after": (2, 6, 12), "clusters": (0.74, 0.55, 0.4), "round_share": 0.5},
}
DECODED = {name: {**setting, "decode_clusters": True} for name, setting in ADAPTIVE.items()}


TINY_ADAPTIVE = {
    "adaptive, half": {"cluster_after": 1, "clusters": 0.5},
    "adaptive, two steps": {"cluster_after": (1, 2), "clusters": (0.6, 0.4)},
}


@dataclass(frozen=True)
class Case:
    """A model to be timed.

    Attributes:
        build: makes it.
        size: of its images, (height, width) in pixels.
        settings: as released, careful and bold.
        smaller: size of the image that leaves about half of the FLOPs.
        adaptive: settings by name; none where its blocks cannot run on regions.
    """

    build: Callable[[], nn.Module]
    size: tuple[int, int]
    settings: tuple[dict, ...]
    smaller: tuple[int, int] | None = None
    adaptive: Mapping[str, dict] = field(default_factory=lambda: ADAPTIVE)

    def rows(self) -> dict[str, dict | None]:
        """Settings by name."""
        found: dict[str, dict | None] = {"dense": None}
        for name, setting in zip(("grid, careful", "grid, bold"), self.settings, strict=False):
            found[name] = setting
        return found | dict(self.adaptive)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return ViTModel(ViTConfig(**large, image_size=518, patch_size=14), add_pooling_layer=False)


def _case(name: str, side: int | None, **others: Any) -> Case:
    it = ARCHITECTURES[name]
    return Case(it.build, it.size, it.settings, None if side is None else (side, side), **others)


CASES = {
    "segmenter-l-640": _case("segmenter-l-640", 464, adaptive=DECODED),
    "vit-l-518": Case(_vit, (518, 518), ARCHITECTURES["depth-anything-l-518"].settings),
    "dpt-large-384": _case("dpt-large-384", 272),
    "depth-anything-l-518": _case("depth-anything-l-518", 364),
    "dinov3-l-1024": _case("dinov3-l-1024", 720),
    "mask2former-swin-l-1152": _case("mask2former-swin-l-1152", 832, adaptive={}),
    "sam-h-1024": _case("sam-h-1024", None, adaptive={}),  # takes images of its own size only
}


def tiny_cases(families: tuple[str, ...]) -> dict[str, Case]:
    """The models of the tests."""
    found = {}
    for family in families:
        tester = next(iter(testers(family).values()))
        adaptive = {} if family in ("mask2former", "sam") else TINY_ADAPTIVE
        found[family] = Case(tester().build, tester.image_size, (tester.accel,) * 2, tester.other_size, adaptive)
    return found


def build(case: Case, device: torch.device) -> nn.Module:
    """With random weights, made in bfloat16 where it runs, with SDPA."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = case.build()
    finally:
        torch.set_default_dtype(before)
    model = model.to(device, torch.bfloat16).eval().requires_grad_(False)
    return Mode(dtype="bfloat16").base(model)


def variants(case: Case, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, dict[str, str]]]:
    """Models by name of the row, and the errors of those that cannot be made."""
    found, errors = {}, {}
    for name, setting in case.rows().items():
        try:
            found[name] = model if setting is None else ta.accelerate(model, setting)
        except (TypeError, ValueError) as error:
            errors[name] = refused(error)
    return found, errors


@torch.inference_mode()
def times(case: Case, batch: int, device: torch.device, model: nn.Module | None = None) -> dict[str, Any]:
    """Rows by name: times, memory and, at batch 1, as a CUDA graph."""
    model = build(case, device) if model is None else model
    images = torch.randn(batch, 3, *case.size, device=device, dtype=torch.bfloat16)
    models, rows = variants(case, model)
    calls = {name: partial(variant, pixel_values=images) for name, variant in models.items()}
    if case.smaller is not None:
        models["smaller image"] = model
        smaller = torch.randn(batch, 3, *case.smaller, device=device, dtype=torch.bfloat16)
        calls["smaller image"] = partial(model, pixel_values=smaller)
    for name, call in list(calls.items()):
        try:
            peak = peak_memory(call, device)  # the first call loads kernels, and takes what they need
            rows[name] = {"peak_bytes": peak if device.type == "cpu" else peak_memory(call, device)}
        except Exception as error:
            rows[name] = refused(error)
            calls.pop(name)
    for name, row in timed(calls, device).items():
        rows[name] |= row | {"images_per_second": 1e3 * batch / row["row_ms"]}
    for name, call in calls.items():
        rows[name] |= _method(models[name], call, device)
        if batch == 1:
            rows[name] |= graph_or_reason(call, device)
    return {"rows": rows, "settings": case.rows(), "size": case.size, "smaller": case.smaller}


def _method(model: nn.Module, call: Call, device: torch.device) -> dict[str, float]:
    """Clustering and reconstruction of a forward pass by themselves."""
    if getattr(model.config, "accel", None) is None:
        return {}
    try:
        alone = MethodAlone(model, call)
        return {"method_row_ms": timed({"method": alone}, device)["method"]["row_ms"]} if alone.ran else {}
    except Exception as error:
        return {"no_method": refused(error)["error"]}


@torch.inference_mode()
def work(case: Case, device: torch.device) -> dict[str, Any]:
    """Kernels and GFLOPs of a forward pass on one image, by row."""
    model = build(case, device)
    models, rows = variants(case, model)
    sizes = dict.fromkeys(models, case.size)
    if case.smaller is not None:
        models["smaller image"], sizes["smaller image"] = model, case.smaller
    for name, variant in models.items():
        images = torch.randn(1, 3, *sizes[name], device=device, dtype=torch.bfloat16)
        try:
            rows[name] = {"gflops": gflops_of_shape(variant, sizes[name])}
            if device.type == "cuda":
                rows[name] |= count_kernels(partial(variant, pixel_values=images), device)
        except Exception as error:
            rows[name] = refused(error)
    return rows


# About half of the blocks' FLOPs, which the targets are set for.
COMPILED = ("dense", "grid, bold", "adaptive, half")


class Compiled:
    """Rows of a case that are compiled one by one, each a step, and timed together.

    Args:
        mode: of `torch.compile`: "default" or "reduce-overhead".
    """

    def __init__(self, case: Case, batch: int, mode: str, device: torch.device) -> None:
        self.case, self.batch, self.mode, self.device = case, batch, mode, device
        self.calls: dict[str, Call] = {}
        self.memory: dict[str, int | None] = {}
        self.model: nn.Module | None = None

    @torch.inference_mode()
    def add(self, row: str) -> dict[str, float]:
        """Compiles a row and calls it until it is at speed.

        Raises:
            ValueError: the case has no such row.
        """
        if self.model is None:
            self.model = build(self.case, self.device)
        setting = self.case.rows()[row]
        model = self.model if setting is None else ta.accelerate(self.model, setting)
        images = torch.randn(self.batch, 3, *self.case.size, device=self.device, dtype=torch.bfloat16)
        compiled = self._compile(model)

        def call() -> Any:
            # Each call is a step of its own: graphs of one row must not be recorded as what follows another's.
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(pixel_values=images)

        call()
        # The second call records graphs, and takes the memory that replays use.
        self.memory[row] = peak_memory(call, self.device)
        call()
        self.calls[row] = call
        counters = torch._dynamo.utils.counters
        return {"peak_bytes": self.memory[row], "graphs from the cache": counters["inductor"]["fxgraph_cache_hit"]}

    def _compile(self, model: nn.Module) -> nn.Module:
        if self.device.type != "cuda":
            return compile_model(model, "eager")
        if self.mode == "default":
            return compile_model(model)
        return compile_model(model, mode=self.mode)

    def times(self) -> dict[str, Any]:
        """Of the rows that were added.

        Raises:
            ValueError: none was.
        """
        if not self.calls:
            raise ValueError("no row was compiled")
        rows = timed(self.calls, self.device)
        dense = rows.get("dense", {"ms": math.nan, "row_ms": math.nan})
        for name, row in rows.items():
            row |= {"peak_bytes": self.memory[name], "images_per_second": 1e3 * self.batch / row["row_ms"]}
            row |= {"speedup": dense["ms"] / row["ms"], "row_speedup": dense["row_ms"] / row["row_ms"]}
        return {"rows": rows}
