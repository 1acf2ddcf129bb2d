"""One thread per process: the models are tiny, and two test processes share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the scripts that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Graph tests of classes that only repeat the blocks of another class of their family are slow ones."""
    for item in items:
        if item.get_closest_marker("graph") and getattr(item.cls, "secondary", False):
            item.add_marker(pytest.mark.slow)
