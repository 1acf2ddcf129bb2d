import pytest
import torch

from hf_tokaccel.functional import cluster_tokens, plan_reconstruction, reconstruct_tokens
from hf_tokaccel.hosts.layout import MapLayout, SliceLayout, TokenLayout, WindowLayout

SETTING = {"iterations": 3, "inverse_temperature": 0.1, "window": 3}


def states_of(shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layout", "shape", "count", "tokens"),
    [
        (TokenLayout((4, 6), prefix=2), (2, 26, 8), 2, 24),
        (TokenLayout((4, 6), prefix=0), (2, 24, 8), 2, 24),
        (MapLayout((4, 6)), (2, 8, 4, 6), 2, 24),
        (SliceLayout((4, 6), prefix=1, slices=3), (2, 73, 8), 6, 24),
        (WindowLayout((4, 6), 2), (2, 8, 4, 6), 12, 4),
        (WindowLayout((4, 6), 2, channels_last=True), (2, 4, 6, 8), 12, 4),
        (WindowLayout((5, 7), 3), (2, 8, 5, 7), 12, 9),
        (WindowLayout((2, 2), 3), (2, 8, 2, 2), 2, 9),
    ],
)
def test_join_is_the_inverse_of_split(layout, shape, count, tokens):
    states = states_of(shape)
    kept, split = layout.split(states, layout.grid)
    assert split.shape == (count, tokens, 8)
    assert torch.equal(layout.join(kept, split, layout.grid), states)


@pytest.mark.parametrize("channels_last", [False, True])
# (6, 9) pads to (8, 12), whose 2 x 3 windows of 3 x 3 clusters have the map's own size.
@pytest.mark.parametrize(("size", "window", "side"), [((8, 8), 4, 2), ((7, 10), 4, 3), ((3, 5), 4, 1), ((6, 9), 4, 3)])
def test_windows_against_a_loop(size, window, side, channels_last):
    maps = states_of((2, *size, 5))
    layout = WindowLayout(size, window, channels_last)
    states = maps if channels_last else maps.permute(0, 3, 1, 2)

    _, tokens = layout.split(states, layout.grid)
    clusters = cluster_tokens(tokens, layout.grid, (side, side), **SETTING).centroids
    smaller = layout.join(None, clusters, (side, side))
    refined = smaller.cos()  # stands for the blocks
    _, values = layout.split(refined, (side, side))
    plan = plan_reconstruction(tokens, clusters, neighbors=3, inverse_temperature=0.1)
    full = layout.join(None, reconstruct_tokens(values, plan), layout.grid)

    rows, columns = -(-size[0] // window), -(-size[1] // window)
    padded = torch.zeros(2, rows * window, columns * window, 5)
    padded[:, : size[0], : size[1]] = maps
    expected_smaller = torch.zeros(2, rows * side, columns * side, 5)
    expected = torch.zeros_like(padded)
    for row in range(rows):
        for column in range(columns):
            there = (slice(None), *(slice(i * window, (i + 1) * window) for i in (row, column)))
            there_small = (slice(None), *(slice(i * side, (i + 1) * side) for i in (row, column)))
            tokens = padded[there].reshape(2, window * window, 5)
            clusters = cluster_tokens(tokens, (window, window), (side, side), **SETTING).centroids
            expected_smaller[there_small] = clusters.reshape(2, side, side, 5)
            plan = plan_reconstruction(tokens, clusters, neighbors=3, inverse_temperature=0.1)
            rebuilt = reconstruct_tokens(clusters.cos(), plan)
            expected[there] = rebuilt.reshape(2, window, window, 5)
    expected = expected[:, : size[0], : size[1]]
    if not channels_last:
        smaller, full = smaller.permute(0, 2, 3, 1), full.permute(0, 2, 3, 1)
    torch.testing.assert_close(smaller, expected_smaller)
    torch.testing.assert_close(full, expected)


def test_as_many_clusters_as_tokens_need_no_padding():
    """So that a setting which merges nothing computes what the host does, global blocks included."""
    layout, states = WindowLayout((5, 7), 3), states_of((2, 8, 5, 7))
    _, tokens = layout.split(states, layout.grid)
    clusters = cluster_tokens(tokens, (3, 3), (3, 3), iterations=0).centroids
    assert torch.equal(layout.join(None, clusters, (3, 3)), states)
