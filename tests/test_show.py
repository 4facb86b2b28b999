"""The picture of an adjacency matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnw_jax.show.adjacency import adjacency_picture


def wiring(sources: int, targets: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(sources, targets)).astype(np.float32)
    return weights, rng.uniform(size=weights.shape) < 0.4


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 60))
def test_size(sources: int, targets: int, smallest_side: int) -> None:
    picture = adjacency_picture(*wiring(sources, targets), smallest_side)
    zoom = 1
    while zoom * min(sources, targets) < smallest_side:
        zoom += 1
    assert picture.shape == (zoom * sources, zoom * targets, 3)
    assert picture.dtype == np.uint8


def test_a_large_matrix_is_one_pixel_an_edge() -> None:
    assert adjacency_picture(*wiring(401, 500)).shape == (401, 500, 3)


def test_zoom_repeats_pixels() -> None:
    weights, mask = wiring(5, 4)
    small, large = adjacency_picture(weights, mask, 1), adjacency_picture(weights, mask, 12)
    np.testing.assert_array_equal(large, np.kron(small, np.ones((3, 3, 1), np.uint8)))


def test_colours() -> None:
    weights, mask = wiring(20, 20)
    picture = adjacency_picture(weights, mask, 1).astype(int)
    background = picture[~mask]
    assert len(np.unique(background, axis=0)) == 1  # also under large weights that are not real
    assert background.max() < 40
    red, blue = picture[mask & (weights > 0)], picture[mask & (weights < 0)]
    assert np.all(red[:, 0] > red[:, 2])
    assert np.all(blue[:, 2] > blue[:, 0])
    # Each real edge stands out, and the larger the weight, the brighter.
    assert picture[mask].sum(-1).min() > background.sum(-1).max() + 80
    for sign in (1, -1):
        chosen = mask & (sign * weights > 0)
        brightness = picture[chosen].sum(-1)[np.argsort(np.abs(weights[chosen]))]
        assert np.all(np.diff(brightness) >= 0)
        assert brightness[-1] > brightness[0]


def test_sources_run_downwards() -> None:
    mask = np.zeros((3, 4), bool)
    mask[2, 1] = True
    picture = adjacency_picture(np.ones((3, 4), np.float32), mask, 1)
    bright = np.argwhere(picture.sum(-1) > 200)
    np.testing.assert_array_equal(bright, [[2, 1]])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_real_edges_or_no_weight(value: float) -> None:
    weights = np.full((3, 3), value, np.float32)
    empty = adjacency_picture(weights, np.zeros((3, 3), bool), 1)
    assert len(np.unique(empty.reshape(-1, 3), axis=0)) == 1
    full = adjacency_picture(weights, np.ones((3, 3), bool), 1)
    assert len(np.unique(full.reshape(-1, 3), axis=0)) == 1
    assert np.any(full != empty)
