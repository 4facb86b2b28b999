"""How many weights each leaf keeps, and in which pattern: exactly as many as the user asked for."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnw_jax.edges import ConstantFanIn, NOfM, edge_budget, sparsify

pytestmark = pytest.mark.usefixtures("quick_compilation")

BUDGETS = ("uniform", "erk", "global")


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def kept(sparsifier: Any, params: Any) -> dict[str, int]:
    return {path: int(mask.sum()) for path, mask in sparsifier.wiring(params).items()}


def top(weights: jax.Array, count: int) -> np.ndarray:
    order = np.argsort(-np.abs(np.asarray(weights)), axis=None, kind="stable")
    return np.isin(np.arange(weights.size), order[:count]).reshape(weights.shape)


# Numbers.

# A few lists of shapes, because every new list compiles a program.
SHAPES = st.sampled_from(
    [
        [(5, 6)],
        [(0, 4)],
        [(2, 2), (2, 2)],
        [(3, 3, 4, 6), (1, 1, 7, 5), (40, 3)],
        [(6, 5), (1, 9), (0, 4), (3, 4, 5)],
        [(40, 3), (2, 2), (3, 3, 4, 6), (2, 2)],
    ]
)
SPARSITIES = st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.9, 0.977, 0.999, 1.0]) | st.floats(0, 1)


def random_tree(
    shapes: list[tuple[int, ...]], few_values: bool = False, seed: int = 0
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = (lambda s: rng.integers(-2, 3, s)) if few_values else rng.standard_normal
    return {
        f"layer_{i}": {"kernel": jnp.asarray(draw(s), jnp.float32), "bias": jnp.ones(s[-1])}
        for i, s in enumerate(shapes)
    }


@given(
    shapes=SHAPES,
    sparsity=SPARSITIES,
    budget=st.sampled_from(BUDGETS),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_exact_counts(
    shapes: list[tuple[int, ...]], sparsity: float, budget: str, ties: bool, seed: int
) -> None:
    params = random_tree(shapes, ties, seed)
    sparsifier = sparsify(params, sparsity, budget)
    counts = kept(sparsifier, params)
    sizes = [math.prod(shape) for shape in shapes]
    assert list(counts) == [f"layer_{i}/kernel" for i in range(len(shapes))]
    if budget == "uniform":
        assert list(counts.values()) == [edge_budget(size, sparsity) for size in sizes]
    else:
        assert sum(counts.values()) == edge_budget(sum(sizes), sparsity)
    state = sparsifier.init(params)
    effective, _ = sparsifier.apply(params, state)
    for i, mask in enumerate(sparsifier.wiring(params, state).values()):
        layer = params[f"layer_{i}"]
        np.testing.assert_array_equal(
            effective[f"layer_{i}"]["kernel"], np.where(mask, layer["kernel"], 0)
        )
        assert effective[f"layer_{i}"]["bias"] is layer["bias"]
        np.testing.assert_array_equal(mask, top(layer["kernel"], int(mask.sum())))


@given(
    shapes=SHAPES,
    sparsities=st.lists(SPARSITIES, min_size=4, max_size=4),
    rest=st.none() | SPARSITIES,
)
def test_explicit_sparsities_add_up(
    shapes: list[tuple[int, ...]], sparsities: list[float], rest: float | None
) -> None:
    params = random_tree(shapes)
    named = len(shapes) if rest is None else (len(shapes) + 1) // 2
    budget = {f"layer_{i}/kernel": sparsities[i] for i in range(named)}
    counts = kept(sparsify(params, rest, budget), params)
    sizes = [math.prod(shape) for shape in shapes]
    by_leaf = [*sparsities[:named], *[rest] * (len(shapes) - named)][: len(shapes)]
    ideal = [size * (1 - s) for size, s in zip(sizes, by_leaf, strict=True)]
    dropped = int(math.fsum(size * s for size, s in zip(sizes, by_leaf, strict=True)))
    assert sum(counts.values()) == sum(sizes) - dropped
    assert all(abs(n - count) <= 1 for n, count in zip(counts.values(), ideal, strict=True))


@given(shapes=SHAPES, sparsity=SPARSITIES)
def test_erdos_renyi_kernel(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    """Each leaf that is not full keeps the same multiple of the sum of its shape."""
    params = random_tree(shapes)
    counts = list(kept(sparsify(params, sparsity, "erk"), params).values())
    sizes = [math.prod(shape) for shape in shapes]
    scales = [
        (max(n - 1, 0) / sum(shape), (n + 1) / sum(shape))
        for n, size, shape in zip(counts, sizes, shapes, strict=True)
        if n < size
    ]
    if scales:
        low, high = max(low for low, _ in scales), min(high for _, high in scales)
        assert low <= high + 1e-9  # one scale fits all of them
        full = [
            size / sum(shape)
            for n, size, shape in zip(counts, sizes, shapes, strict=True)
            if n == size
        ]
        assert all(needed <= high + 1e-9 for needed in full)


def test_erk_by_hand() -> None:
    # 164 of 72 + 1296 weights are kept: 164 / (9 + 8 + 36 + 36) = 1.84 for each unit of shape.
    params = {"a": jnp.ones((9, 8)), "b": jnp.ones((36, 36))}
    counts = sparsify(params, 1 - 164 / 1368, "erk").last
    assert counts == {"a": 31, "b": 133}
    # Small enough to be full: 2 x 2 asks for more than its 4.
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((30, 30))}
    assert sparsify(params, 0.5, "erk").last == {"a": 4, "b": 448}


def test_one_threshold_over_all() -> None:
    params = {"a": jnp.arange(20.0).reshape(4, 5), "b": -jnp.arange(10.0, 22.0).reshape(3, 4)}
    wiring = sparsify(params, 1 - 7 / 32, "global").wiring(params)
    assert [int(m.sum()) for m in wiring.values()] == [3, 4]
    assert sorted(abs(float(w)) for p, m in wiring.items() for w in params[p][m]) == [
        17, 18, 18, 19, 19, 20, 21,
    ]  # fmt: skip
    # If magnitudes are equal, those of the first leaf come first.
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
    assert kept(sparsify(params, 1 - 10 / 18, "global"), params) == {"a": 9, "b": 1}


def test_global_over_several_precisions() -> None:
    params = {"a": normal(8, 8), "b": normal(8, 8, seed=1, dtype=jnp.bfloat16)}
    wiring = sparsify(params, 0.75, "global").wiring(params)
    both = jnp.concatenate([params[p].astype(jnp.float32).ravel() for p in params])
    mask = np.concatenate([np.asarray(wiring[p]).ravel() for p in params])
    np.testing.assert_array_equal(mask, top(both, 32))
    effective, _ = sparsify(params, 0.75, "global").apply(
        params, sparsify(params, 0.75, "global").init(params)
    )
    assert effective["b"].dtype == jnp.bfloat16


# Patterns.


@given(
    groups=st.integers(1, 4),
    m=st.integers(1, 6),
    outputs=st.integers(1, 5),
    data=st.data(),
    ties=st.booleans(),
)
@settings(max_examples=15)
def test_n_of_m_in_every_group(
    groups: int, m: int, outputs: int, data: st.DataObject, ties: bool
) -> None:
    n = data.draw(st.integers(1, m))
    axis = data.draw(st.sampled_from([0, 1, -2, -1]))
    # Two or three axes, the groups along any of them.
    shape = [2, outputs] if data.draw(st.booleans()) else [2, 3, outputs]
    shape[axis] = groups * m
    rng = np.random.default_rng(groups + 7 * m)
    draw = rng.integers(-1, 2, shape) if ties else rng.standard_normal(shape)
    params = {"kernel": jnp.asarray(draw, jnp.float32)}
    sparsifier = sparsify(params, rule=NOfM(n, m, axis), include="kernel")
    (mask,) = sparsifier.wiring(params).values()
    grouped = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
    values = np.moveaxis(np.abs(draw), axis, -1).reshape(-1, m)
    assert np.all(grouped.sum(1) == n)
    for chosen, magnitudes in zip(grouped, values, strict=True):
        np.testing.assert_array_equal(chosen, top(magnitudes, n))


@given(shape=st.sampled_from([(3, 3, 4, 6), (5, 6), (6, 5), (40, 3)]), sparsity=SPARSITIES)
def test_constant_fan_in_in_every_column(shape: tuple[int, ...], sparsity: float) -> None:
    for axis in (-1, 0):
        params = {"kernel": normal(*shape)}
        sparsifier = sparsify(params, sparsity, rule=ConstantFanIn(axis))
        (mask,) = sparsifier.wiring(params).values()
        columns = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, shape[axis])
        weights = np.moveaxis(np.asarray(params["kernel"]), axis, -1).reshape(columns.shape)
        fan_in = -(-edge_budget(columns.size, sparsity) // columns.shape[1])
        assert np.all(columns.sum(0) == fan_in)
        for chosen, values in zip(columns.T, weights.T, strict=True):
            np.testing.assert_array_equal(chosen, top(values, int(chosen.sum())))


def test_patterns_by_name() -> None:
    params = {"kernel": normal(8, 4)}
    assert kept(sparsify(params, rule="2:4"), params) == {"kernel": 16}
    assert sparsify(params, rule="2:4").rule == NOfM(2, 4)
    assert sparsify(params, 0.5, rule="1:2").rule == NOfM(1, 2)
    assert kept(sparsify(params, 0.7, rule="constant_fan_in"), params) == {"kernel": 4 * 3}
