"""One thread per process: the models are tiny, and two test processes share two cores."""

import gc
import os

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


def pytest_collection_modifyitems(items):
    """Graph tests are slow ones in classes that repeat the blocks of another class of their family, or say so."""
    for item in items:
        slow = any(getattr(item.cls, name, False) for name in ("secondary", "slow_graphs"))
        if slow and item.get_closest_marker("graph"):
            item.add_marker(pytest.mark.slow)
