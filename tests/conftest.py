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

    Graphs make another million, so that searches are rarer, too.
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


@pytest.fixture(scope="module", autouse=True)
def freeze():
    """Nor through what the tests of a module have imported and cached: timing a model searches each time."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Tests of graphs and processes are slow ones in classes that repeat another's blocks, or say so of graphs."""
    for item in items:
        graph, process = (item.get_closest_marker(name) for name in ("graph", "process"))
        repeats, says_so = (getattr(item.cls, name, False) for name in ("secondary", "slow_graphs"))
        if (repeats and (graph or process)) or (says_so and graph):
            item.add_marker(pytest.mark.slow)
