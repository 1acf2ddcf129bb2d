"""The method by itself: how exact, how many kernels, how fast."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.parity import tf32
from benchmarks.gpu.timing import Call, count_kernels, usable, with_graphs
from benchmarks.workloads import Clustering
from hf_tokaccel.functional import (
    average_tokens,
    cluster_tokens,
    partition_tokens,
    plan_reconstruction,
    reconstruct_regions,
)
from hf_tokaccel.measure.compilation import compile_model

OFFSETS = (0.0, 3.0)  # of all tokens, in units of their own deviation


def exactness(place: Clustering, device: torch.device) -> list[dict[str, Any]]:
    """What float32 with and without TF32 changes, against float64 on the CPU, where tokens share an offset or not."""
    rows = []
    for offset in OFFSETS:
        common = offset * torch.randn(1, 1, place.width, generator=torch.Generator().manual_seed(1))
        x = place.tokens(1) + common
        expected = _outcome(x.double(), place)
        for allowed in (False, True):
            with tf32(allowed):
                first, second = (_outcome(x.to(device), place) for _ in range(2))
            rows.append(
                {"offset": offset, "tf32": allowed}
                | {name: _error(first[name], expected[name]) for name in ("centroids", "rebuilt", "region means")}
                | {"other nearest": (first["nearest"] != expected["nearest"]).float().mean().item()}
                | {"repeats": [name for name in first if torch.equal(first[name], second[name])]}
            )
    return rows


def _outcome(x: Tensor, place: Clustering) -> dict[str, Tensor]:
    s = cluster_tokens(x, place.grid, place.cluster_grid, window=place.window, inverse_temperature="auto").centroids
    nearest = plan_reconstruction(x, s, expansion="nearest").indices
    found = {"centroids": s, "rebuilt": place.by_grid(x), "nearest": nearest}
    regions = partition_tokens(x, place.clusters)
    # Not which region a token is in: one that changes renumbers all that follow.
    found["region means"] = reconstruct_regions(average_tokens(x, regions), regions, expansion="nearest")
    return {name: value.cpu() for name, value in found.items()}


def _error(actual: Tensor, expected: Tensor) -> float:
    """Relative to how far tokens are from their mean, which a common offset does not change."""
    return ((actual - expected).norm() / (expected - expected.mean(1, keepdim=True)).norm()).item()


@contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def deterministic(place: Clustering, device: torch.device) -> dict[str, str]:
    """Whether each form runs where PyTorch refuses what is not deterministic."""
    x, found = place.tokens(1).to(device, torch.bfloat16), {}
    for name, function in place.functions().items():
        try:
            with _deterministic():
                function(x)
            found[name] = "runs"
        except RuntimeError as error:
            found[name] = str(error).split(".")[0][:200]
    return found


def calls_of(place: Clustering, images: int, device: torch.device) -> dict[str, Call]:
    """The method in its forms on bfloat16 tokens, by name."""
    x = place.tokens(images).to(device, torch.bfloat16)
    return {name: partial(function, x) for name, function in place.functions().items()}


def block_calls(place: Clustering, images: int, device: torch.device) -> dict[str, Call]:
    """A block of a ViT of this width on all tokens, and on the clusters, with a class token each: what is saved."""
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTLayer

    heads = max(place.width // 64, 1)
    config = ViTConfig(hidden_size=place.width, num_attention_heads=heads, intermediate_size=4 * place.width)
    config._attn_implementation = "sdpa"
    block: nn.Module = ViTLayer(config).eval().requires_grad_(False).to(device, torch.bfloat16)
    counts = {"block": place.grid[0] * place.grid[1] + 1, "block on clusters": place.clusters + 1}
    make = partial(torch.randn, device=device, dtype=torch.bfloat16)
    return {name: partial(block, make(images, count, place.width)) for name, count in counts.items()}


def times(place: Clustering, images: int, device: torch.device) -> dict[str, dict[str, float]]:
    """By form: waited for, in a row, and as a graph."""
    calls = calls_of(place, images, device)
    if place.units == 1:
        calls |= block_calls(place, images, device)
    return with_graphs(calls, device)


def kernels(place: Clustering, device: torch.device) -> dict[str, Any]:
    """Of one image, by form."""
    return _counts(calls_of(place, 1, device), device)


def _counts(calls: dict[str, Call], device: torch.device) -> dict[str, Any]:
    calls, found = usable(calls)
    return found | {name: count_kernels(call, device) for name, call in calls.items()}


def compiled(place: Clustering, images: int, device: torch.device) -> dict[str, Call]:
    """The forms, each compiled when it is first called."""
    backend = "inductor" if device.type == "cuda" else "eager"
    x = place.tokens(images).to(device, torch.bfloat16)
    return {name: partial(compile_model(function, backend), x) for name, function in place.functions().items()}


@torch.inference_mode()
def compiled_times(place: Clustering, images: int, device: torch.device) -> dict[str, Any]:
    """By form: as `times`, compiled."""
    return with_graphs(compiled(place, images, device), device)


@torch.inference_mode()
def compiled_kernels(place: Clustering, device: torch.device) -> dict[str, Any]:
    """Of one image, by form, compiled."""
    return _counts(compiled(place, 1, device), device)


@torch.inference_mode()
def compile_ahead(place: Clustering, images: int, device: torch.device) -> dict[str, Any]:
    """What does not compile, and why."""
    return usable(compiled(place, images, device))[1]
