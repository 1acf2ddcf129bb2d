"""One thread per process: the models are tiny, and two test processes share two cores."""

import contextlib
import gc
import importlib.metadata
import os
import platform
import re

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the scripts that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish():
    """What imports have made stays to the end: no search for garbage need look through these million objects.

    Graphs make another million, so that searches are rarer, too. Both together halve what some files take.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_report_header():
    """Versions of all that the package and its tests need, as installed."""
    needed = {re.match(r"[\w-]+", line)[0] for line in importlib.metadata.requires("hf_tokaccel") or []}
    found = {"python": platform.python_version()}
    for name in sorted(needed - {"hf_tokaccel"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return "versions: " + ", ".join(f"{name} {version}" for name, version in found.items())


def pytest_collection_modifyitems(items):
    """Graph tests are slow ones in classes that repeat the blocks of another class of their family, or say so."""
    for item in items:
        slow = any(getattr(item.cls, name, False) for name in ("secondary", "slow_graphs"))
        if slow and item.get_closest_marker("graph"):
            item.add_marker(pytest.mark.slow)
