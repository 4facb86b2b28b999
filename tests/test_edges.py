"""The choice of edges: exactly k, by magnitude, lowest index first; and which weights learn."""

import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run_python

import dnw_jax
from dnw_jax.edges import edge_budget, edge_mask, straight_through, top_edges
from dnw_jax.edges.select import edge_masks
from experiments.benchmarks.selection_passes import BUDGETS, kinds_of_weights, passes

pytestmark = pytest.mark.usefixtures("strict_promotion")

# A few shapes, so that each compiles once: 0 to 3 dimensions, empty, one element, odd sizes.
SHAPES = [(), (0, 3), (1,), (37,), (4, 9), (9, 4), (2, 3, 5)]
KINDS = [(shape, jnp.float32) for shape in SHAPES]
KINDS += [(shape, dtype) for dtype in (jnp.bfloat16, jnp.float16) for shape in ((37,), (2, 3, 5))]

compiled_mask = jax.jit(edge_mask)  # the count is traced


def oracle(weights: jax.Array, num_edges: int) -> np.ndarray:
    """Returns the mask by a stable sort: NaN first, then by magnitude, then by flat index."""
    magnitude = np.abs(np.asarray(weights, np.float64).flatten())
    is_nan = np.isnan(magnitude)
    order = np.lexsort((np.arange(magnitude.size), -np.where(is_nan, 0, magnitude), ~is_nan))
    mask = np.zeros(magnitude.size, bool)
    mask[order[:num_edges]] = True
    return mask.reshape(weights.shape)


def same(mask: jax.Array, expected: np.ndarray) -> None:
    assert mask.dtype == bool
    assert mask.shape == expected.shape
    np.testing.assert_array_equal(mask, expected)


EXTREMES = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40, -1e-40, 1.4e-45, 6e-8, 3e38, 65504]
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])
VALUES = {
    "any": st.floats(width=32),
    "few distinct": FEW,
    "all equal": st.just(-0.5),
    "extremes": st.sampled_from(EXTREMES),
    "normal": st.floats(-4, 4, width=16),
}


@st.composite
def weights_and_count(draw: st.DrawFn) -> tuple[jax.Array, int]:
    shape, dtype = draw(st.sampled_from(KINDS))
    values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
    size = int(np.prod(shape))
    drawn = draw(st.lists(values, min_size=size, max_size=size))
    with np.errstate(over="ignore"):  # too large for float16: infinity
        weights = np.array(drawn, np.float32).reshape(shape).astype(dtype)
    count = draw(st.sampled_from([0, size]) | st.integers(0, size))
    return jnp.asarray(weights), count


@given(weights_and_count())
def test_mask_equals_a_stable_sort(drawn: tuple[jax.Array, int]) -> None:
    weights, count = drawn
    mask = compiled_mask(weights, count)
    same(mask, oracle(weights, count))
    assert int(np.count_nonzero(mask)) == count


@given(weights_and_count(), st.integers(0, 2**32 - 1))
def test_top_edges_forward_and_backward(drawn: tuple[jax.Array, int], seed: int) -> None:
    weights, count = drawn
    noise = np.random.default_rng(seed).normal(size=weights.shape)
    cotangent = jnp.asarray(noise).astype(weights.dtype)
    kept, gradient = forward_and_backward(weights, count, cotangent)
    assert kept.dtype == weights.dtype
    expected = np.where(oracle(weights, count), weights, np.zeros((), weights.dtype))
    np.testing.assert_array_equal(bits(kept), bits(expected))
    np.testing.assert_array_equal(bits(gradient), bits(cotangent))  # unchanged, for all


@jax.jit
def forward_and_backward(weights: jax.Array, count: int, cotangent: jax.Array) -> tuple:
    kept, pull = jax.vjp(lambda w: top_edges(w, count), weights)
    return kept, *pull(cotangent)


def bits(array: jax.Array | np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)


@pytest.mark.parametrize("num_edges", [0, 1, 17, 36])
def test_a_python_count(num_edges: int) -> None:
    weights = jax.random.normal(jax.random.key(0), (4, 9)).round(1)  # with ties
    expected = oracle(weights, num_edges)
    same(edge_mask(weights, num_edges), expected)
    same(jax.jit(edge_mask, static_argnums=1)(weights, num_edges), expected)


def test_many_ties_among_many_weights() -> None:
    weights = jnp.asarray(np.random.default_rng(0).integers(-3, 4, (300, 301)), jnp.float32)
    for count in (1, 12_345, 40_000, 90_299):
        same(compiled_mask(weights, count), oracle(weights, count))


def test_neighbouring_floats_are_distinguished() -> None:
    # All within a few units in the last place: each bit of the pattern matters.
    start = np.float32(0.1).view(np.uint32)
    pattern = np.random.default_rng(0).permutation(start + np.arange(257, dtype=np.uint32))
    weights = jnp.asarray(pattern.view(np.float32))
    for count in (1, 2, 100, 256):
        same(compiled_mask(weights, count), oracle(weights, count))


@pytest.mark.parametrize("num_edges", [-5, -1, 37, 2**31 - 1, -(2**31)])
def test_a_traced_count_is_clipped(num_edges: int) -> None:
    weights = jax.random.normal(jax.random.key(0), (36,))
    mask = compiled_mask(weights, jnp.int32(num_edges))
    same(mask, np.full(36, num_edges > 0))


def test_vmap_over_weights() -> None:
    weights = jax.random.normal(jax.random.key(0), (6, 5, 7)).round(1)
    masks = jax.jit(jax.vmap(lambda w: edge_mask(w, 11)))(weights)
    for mask, each in zip(masks, weights, strict=True):
        same(mask, oracle(each, 11))


def test_vmap_over_counts() -> None:
    weights = jnp.asarray([3.0, 1.0, -1.0, 1.0, 0.0, -3.0])
    masks = jax.jit(jax.vmap(lambda k: edge_mask(weights, k)))(jnp.arange(7))
    for count, mask in enumerate(masks):
        same(mask, oracle(weights, count))


def test_vmap_over_both_and_grad() -> None:
    weights = jax.random.normal(jax.random.key(0), (4, 12)).round(1)
    counts = jnp.asarray([0, 3, 12, 7])

    def energy(w: jax.Array, k: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(top_edges(w, k)))

    gradients = jax.jit(jax.vmap(jax.grad(energy)))(weights, counts)
    # The gradient at the kept weights: straight through to the others, where it is zero.
    for gradient, w, k in zip(gradients, weights, counts, strict=True):
        np.testing.assert_array_equal(gradient, np.where(oracle(w, int(k)), w, 0))


def test_hallucinated_edges_learn() -> None:
    """The gradient is <Z_u, dL/dI_v> for every edge, real or not: the update rule."""
    weights, planes = jnp.asarray([[3.0, 0.1], [0.2, -2.0]]), jnp.asarray([[5.0, 7.0]])
    slope = jnp.asarray([[1.0, 10.0]])
    gradient = jax.grad(lambda w: jnp.sum(planes @ top_edges(w, 2) * slope))(weights)
    np.testing.assert_array_equal(gradient, planes.T @ slope)


def test_straight_through_any_mask() -> None:
    weights, mask = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([True, False, True])
    kept, pull = jax.vjp(lambda w: straight_through(w, mask), weights)
    np.testing.assert_array_equal(kept, [1.0, 0.0, 3.0])
    np.testing.assert_array_equal(pull(jnp.asarray([4.0, 5.0, 6.0]))[0], [4.0, 5.0, 6.0])


def test_straight_through_in_forward_mode() -> None:
    weights, mask = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([True, False, True])
    tangent = jnp.asarray([4.0, 5.0, 6.0])
    kept, kept_tangent = jax.jvp(lambda w: straight_through(w, mask), (weights,), (tangent,))
    np.testing.assert_array_equal(kept, [1.0, 0.0, 3.0])
    np.testing.assert_array_equal(kept_tangent, tangent)
    hessian = jax.hessian(lambda w: jnp.sum(straight_through(w, mask) ** 2))(weights)
    np.testing.assert_array_equal(hessian, 2 * np.eye(3))


def test_the_choice_itself_has_no_gradient() -> None:
    gradient = jax.grad(lambda w: jnp.sum(edge_mask(w, 2).astype(jnp.float32)))(jnp.arange(5.0))
    np.testing.assert_array_equal(gradient, np.zeros(5))


@pytest.mark.parametrize("num_edges", [-1, 7, 10**12])
@pytest.mark.parametrize("function", [edge_mask, top_edges])
def test_a_count_out_of_range(function, num_edges: int) -> None:
    with pytest.raises(ValueError, match=rf"num_edges is {num_edges}; .*0\.\.6"):
        function(jnp.ones((2, 3)), num_edges)


def test_a_count_that_is_an_array_outside_of_jit() -> None:
    np.testing.assert_array_equal(edge_mask(jnp.arange(3.0), jnp.int32(1)), [False, False, True])
    with pytest.raises(ValueError, match=r"num_edges is 4; .*0\.\.3"):
        edge_mask(jnp.arange(3.0), jnp.int32(4))


def test_a_count_for_no_weights() -> None:
    with pytest.raises(ValueError, match=r"num_edges is 1; .*0\.\.0"):
        edge_mask(jnp.ones((0,)), 1)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switches off the type checks of the tests, which a user does not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.uint32, np.int64])
def test_a_count_of_any_integer_dtype(dtype: jnp.dtype) -> None:
    weights = jax.random.normal(jax.random.key(0), (300,))  # more than an int8 can count
    same(compiled_mask(weights, dtype(100)), oracle(weights, 100))


@pytest.mark.usefixtures("unchecked")
def test_a_count_that_int32_cannot_hold_keeps_all() -> None:
    same(compiled_mask(jnp.arange(3.0), jnp.uint32(2**32 - 1)), np.ones(3, bool))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn]
)
def test_weights_of_a_wrong_dtype(dtype: jnp.dtype) -> None:
    with pytest.raises(TypeError, match=f"weights are {jnp.dtype(dtype).name}; "):
        edge_mask(jnp.ones(3, dtype), 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("num_edges", [1.0, jnp.float32(1), np.float64(2), "1"])
def test_counts_of_a_wrong_type(num_edges: object) -> None:
    with pytest.raises(TypeError):
        edge_mask(jnp.ones(3), num_edges)


def test_float64() -> None:
    code = """
import jax, jax.numpy as jnp, numpy as np
from dnw_jax import edge_mask, top_edges
mask, top = jax.jit(edge_mask), jax.jit(top_edges)
rng = np.random.default_rng(0)
near = (np.float64(0.1).view(np.uint64) + np.arange(60, dtype=np.uint64)).view(np.float64)
for weights in (rng.permutation(near), rng.integers(-2, 3, 60) * 1e-310, rng.normal(size=60)):
    w = jnp.asarray(weights.reshape(6, 10))
    assert w.dtype == jnp.float64
    for k in (0, 1, 30, 59, 60):
        expected = np.zeros(60, bool)
        expected[np.argsort(-abs(weights), kind="stable")[:k]] = True
        np.testing.assert_array_equal(mask(w, k), expected.reshape(6, 10))
        assert top(w, jnp.int64(k)).dtype == jnp.float64
print("done")
"""
    assert run_python(code, JAX_ENABLE_X64="1") == "done\n"


LARGE: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "uniform": lambda rng, shape: rng.uniform(-0.1, 0.1, shape),
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(shape),
    "half zeros": lambda rng, shape: rng.standard_normal(shape) * (rng.uniform(size=shape) < 0.5),
    "few values": lambda rng, shape: rng.integers(-3, 4, shape) / 8,
    "one value": lambda rng, shape: np.full(shape, -0.5),
    "zeros": lambda rng, shape: np.zeros(shape),
    "rows of other scale": lambda rng, shape: (
        rng.standard_normal(shape)
        * np.logspace(-30, 30, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    ),
    "all kinds": lambda rng, shape: rng.choice(np.array([*EXTREMES, 1.0, -2.0]), shape),
    "outliers": lambda rng, shape: (
        np.where(rng.uniform(size=shape) < 1e-4, 1e30, 1e-3) * rng.uniform(size=shape)
    ),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize(
    "shape", [(211, 190), (40_000,), (3, 3, 64, 70), (1, 70_001), (20_000, 2)], ids=str
)
def test_large_arrays(name: str, shape: tuple[int, ...]) -> None:
    """These arrays are larger than the sample of the first pass."""
    rng = np.random.default_rng(len(name))
    with np.errstate(over="ignore"):
        weights = jnp.asarray(LARGE[name](rng, shape).astype(np.float32))
    size = weights.size
    for count in (0, 1, 2, size // 100, size // 20, size // 2, size - 1, size):
        same(compiled_mask(weights, count), oracle(weights, count))


@pytest.mark.parametrize("size", [5, 40_000])
def test_the_largest_of_all_nans_first(size: int) -> None:
    """With all bits set: no candidate lies above this NaN."""
    weights = jnp.zeros(size).at[jnp.array([0, 3])].set(np.uint32(0xFFFFFFFF).view(np.float32))
    for count in (0, 1, 2, 3):
        same(compiled_mask(weights, count), oracle(weights, count))


def test_vmap_over_large_arrays() -> None:
    weights = (
        jax.random.normal(jax.random.key(0), (3, 200, 200)) * jnp.array([1, 1e-3, 9])[:, None, None]
    )
    counts = jnp.array([17, 4000, 40_000])
    masks = jax.vmap(edge_mask)(weights, counts)
    for one, count, mask in zip(weights, counts, masks, strict=True):
        same(mask, oracle(one, int(count)))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (0, 0), (3, 0, 5)], ids=str)
def test_empty_arrays_among_others(sizes: tuple[int, ...]) -> None:
    weights = [jnp.ones((size, 2)) for size in sizes]
    for count in range(2 * sum(sizes) + 1):
        masks = edge_masks(weights, count)
        chosen = np.concatenate([np.asarray(mask).ravel() for mask in masks])
        np.testing.assert_array_equal(chosen, np.arange(chosen.size) < count)


def test_ties_are_searched_only_if_they_exist() -> None:
    text = compiled_mask.lower(jnp.zeros((300, 301)), 5).compile().as_text()
    outside = text[text.index("ENTRY") :]
    assert "while" in outside
    assert not re.search(r"s32\[301\]", outside)  # how many ties lie in each column


def test_a_few_passes_suffice() -> None:
    for kind, weights in kinds_of_weights().items():
        counts = [int(passes(weights, jnp.int32(budget))) for budget in BUDGETS]
        assert np.mean(counts) <= 8, kind
        assert max(counts) <= 12, kind


@pytest.mark.slow
def test_sharded_over_eight_devices() -> None:
    """The choice is the same, and only counts and a sample are all-reduced: no weights move."""
    code = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dnw_jax import edge_mask, top_edges
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
choose = jax.jit(lambda w: (edge_mask(w, 700), top_edges(w, 700)))
small = jax.random.normal(jax.random.key(0), (64, 48))
large = jax.random.normal(jax.random.key(0), (256, 208))
rows, columns = P("data", None), P(None, "data")
f32 = jnp.float32
for exact, dtype, spec in (
    (small, f32, rows), (small, f32, columns), (small, jnp.bfloat16, rows),
    (large, f32, rows), (large, f32, columns),
):
    for weights in (exact.astype(dtype), exact.round().astype(dtype)):  # without ties, with
        expected = np.asarray(choose(weights)[0])
        assert expected.sum() == 700
        sharded = jax.device_put(weights, NamedSharding(mesh, spec))
        for kept in choose(sharded):
            assert kept.sharding.is_equivalent_to(sharded.sharding, 2), kept.sharding
            np.testing.assert_array_equal(np.asarray(kept) != 0, expected)
    text = choose.lower(sharded).compile().as_text()
    assert "all-reduce" in text
    moves = r"all-gather|all-to-all|collective-permute"
    assert not re.search(moves, text), re.search(f".*({moves}).*", text)
print("done")
"""
    flags = "--xla_force_host_platform_device_count=8"
    assert run_python(code, XLA_FLAGS=flags, JAX_PLATFORMS="cpu") == "done\n"


# Budgets.


@given(st.integers(0, 10**7), st.floats(0, 1))
def test_the_budget_equals_that_of_the_published_code(size: int, sparsity: float) -> None:
    assert edge_budget(size, sparsity) == size - int(sparsity * size)


@pytest.mark.parametrize(
    ("size", "sparsity", "budget"),
    [(640_000, 0.95, 32_000), (10, 0.95, 1), (10, 0.0, 10), (10, 1.0, 0), (0, 0.5, 0), (3, 0.5, 2)],
)
def test_budgets(size: int, sparsity: float, budget: int) -> None:
    assert edge_budget(size, sparsity) == budget


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"sparsity is {sparsity}"):
        edge_budget(10, sparsity)


def test_public_names() -> None:
    assert dnw_jax.top_edges is top_edges
    assert dnw_jax.edge_mask is edge_mask
    assert dnw_jax.edge_budget is edge_budget
