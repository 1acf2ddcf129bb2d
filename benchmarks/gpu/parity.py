"""The same numbers on a GPU as on the CPU: a tiny model of every family, those of the tests."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

import hf_tokaccel as ta
from benchmarks.common import ROOT
from benchmarks.gpu.timing import refused
from hf_tokaccel.checks import UserError

LIMIT = 1e-4  # of the largest output, in float32 without TF32
# What a run out of time should not miss comes first.
FIRST = ("segmenter", "vit", "dpt", "depth_anything", "dinov2", "dinov3_vit", "swin", "mask2former", "sam")
ADAPTIVE = {"cluster_after": 1, "clusters": 0.5}
MODES = ("float32", "float32 with TF32", "bfloat16", "autocast")


def families() -> list[str]:
    """Those that have a test file, the most important first."""
    names = [path.stem.removeprefix("test_") for path in sorted((ROOT / "tests" / "models").glob("test_*.py"))]
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def testers(family: str) -> dict[str, type]:
    """The classes by name that describe the tiny models of a family to the tests."""
    for folder in ("tests/models", "tests"):
        if str(ROOT / folder) not in sys.path:
            sys.path.insert(0, str(ROOT / folder))
    for name in ("pytest", "skimage"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            sys.modules[name] = MagicMock()  # nothing here calls it: it only marks what is a test
    module = importlib.import_module(f"test_{family}")
    found = {}
    for name, value in vars(module).items():
        own = inspect.isclass(value) and value.__module__ == module.__name__ and name.startswith("Test")
        if own and getattr(value, "native", None) is not None and hasattr(value, "images"):
            found[name] = value
    blocks_of_its_own = {name: value for name, value in found.items() if not getattr(value, "secondary", False)}
    return blocks_of_its_own or found


def models_of(tester: type) -> dict[str, Callable[[], nn.Module]]:
    """Dense, as the tests accelerate it, and with adaptive clusters; by name, and made when called."""
    torch.manual_seed(0)
    it = tester()
    if hasattr(tester, "ours"):  # of semantic tokens, which have to be trained
        native = tester.native(it.config()).eval()
        return {"semantic tokens": lambda: tester.build(native).eval()}
    dense = it.build().eval()
    return {
        "dense": lambda: dense,
        "grid": lambda: ta.accelerate(dense, tester.accel),
        "adaptive": lambda: ta.accelerate(dense, ADAPTIVE),
    }


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest over the outputs, relative to the largest value of each; infinite where something is not a number."""
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        if not a.is_floating_point():
            continue
        a, b = a.double().cpu(), b.double().cpu()
        error = ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() if b.numel() else 0.0
        worst = max(worst, error if error == error else float("inf"))
    return worst


def compare(tester: type, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Difference to the CPU's float32 by mode, and whether two runs agree in every bit."""
    it, images = tester(), tester().images()
    expected = it.run(model, images)
    found: dict[str, Any] = {"difference": {}, "repeats": {}, "errors": {}}
    for mode in MODES:
        half = mode == "bfloat16"
        around = torch.autocast(device.type, torch.bfloat16) if mode == "autocast" else nullcontext()
        try:
            run = copy.deepcopy(model).to(device, torch.bfloat16 if half else torch.float32)
            x = images.to(device, torch.bfloat16 if half else images.dtype)
            with tf32(mode == "float32 with TF32"), around:
                first, second = it.run(run, x), it.run(run, x)
        except Exception as error:  # of Transformers' own Swin in MaskFormer, in bfloat16
            found["errors"][mode] = refused(error)["error"]
            continue
        found["difference"][mode] = difference(first, expected)
        # What is not a number does not equal itself, and would be no news twice.
        same = (torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))
        found["repeats"][mode] = all(same)
    found["holds"] = found["difference"].get("float32", 1) <= LIMIT and found["repeats"]["float32"]
    return found


def check_family(family: str, device: torch.device) -> dict[str, Any]:
    """What `compare` finds, by class of the tests and form of the model."""
    found: dict[str, Any] = {}
    for name, tester in testers(family).items():
        for form, make in models_of(tester).items():
            try:
                found[f"{name.removeprefix('Test')} {form}"] = compare(tester, make(), device)
            except Exception as error:
                # Families with windows say so; of all other forms an error is one.
                refuses = form == "adaptive" and isinstance(error, UserError)
                key = f"{name.removeprefix('Test')} {form}"
                found[key] = {"not offered": str(error)} if refuses else refused(error)
    return found
