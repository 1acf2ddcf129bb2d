"""How many kernels a GPU is asked for: what was reached stays."""

import pytest
import torch

from benchmarks.launches import CASES, TARGETS, WIDTH, Launches, eager

# Counted, none to spare: an operator more has to be worth it.
EAGER = {"grid": 75, "grid, auto": 127, "grid, plan in a window of 7": 94}
EAGER |= {"adaptive": 96, "adaptive, one round of half": 28, "adaptive, tiles of 16": 184}
COMPILED = {"grid": 61, "adaptive": 44, "adaptive, one round of half": 13}


@pytest.mark.parametrize("name", CASES)
def test_no_more_launches_than_before(name):
    assert eager(CASES[name]).total() <= EAGER[name]


def test_the_target_of_grids_is_reached():
    assert eager(CASES["grid"]).total() <= TARGETS["grid"][0]


def test_a_batch_takes_hardly_more():
    assert eager(CASES["adaptive"], 8).total() - eager(CASES["adaptive"]).total() <= 8
    assert eager(CASES["grid"], 8).total() - eager(CASES["grid"]).total() <= 4


def test_what_is_counted():
    with Launches() as launches:
        x = torch.ones(4, 6)
        x.view(6, 4).t()[1:].unsqueeze(0)
        x + x
        x.topk(2)
        x.sort(1)
    assert launches.kernels == {"ones": 1, "add": 1, "topk": 2, "sort": 3}


@pytest.mark.graph
def test_no_more_kernels_are_compiled_than_before():
    pytest.importorskip("triton")
    from benchmarks.launches_compiled import compiled

    counted = compiled({name: CASES[name] for name in COMPILED}, (1, 1600, WIDTH))
    assert all(counted[name] <= COMPILED[name] for name in COMPILED), counted
    assert min(counted.values()) > 10, "the code was not read"
