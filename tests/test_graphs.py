"""What nodes do and how signal goes round, against the paper written out in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_forward
import pytest
from flax import nnx
from jax import lax

from dnw_jax.config import schema
from dnw_jax.edges import RULES
from dnw_jax.graphs import evolution
from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.blocked import BlockedGraph, backward_edges
from dnw_jax.graphs.continuous_time import SOLVERS, ContinuousTime, field
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.nodes import BatchNormNodes, Nodes, NodeValues
from dnw_jax.graphs.time_graph import Dynamics, TimeGraph, update
from dnw_jax.ops.barriers import barrier
from dnw_jax.ops.depthwise import depthwise_conv3x3
from dnw_jax.ops.norms import instance_norm
from dnw_jax.ops.ode import Evolution, evolve, first_step

pytestmark = pytest.mark.usefixtures("strict_promotion")


def close(ours, expected, tolerance: float = 1e-5) -> None:
    """Relative to the largest expected value."""
    expected = np.asarray(expected, np.float64)
    scale = max(1e-12, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(ours, np.float64) / scale, expected / scale, 0, tolerance)


def normal(shape: tuple[int, ...], seed: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jnp.asarray(numpy_forward.random_planes(shape, seed), dtype)


# Fences.


def test_a_barrier_passes_values_and_gradients() -> None:
    rows = normal((3, 4), 0)

    def fenced(row: jax.Array) -> jax.Array:
        doubled, same = barrier((2 * row, row))
        return jnp.sum(doubled * same)

    np.testing.assert_allclose(jax.vmap(fenced)(rows), jnp.sum(2 * rows**2, 1), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(fenced))(rows), 4 * rows, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda r: jax.vmap(fenced)(r).sum())(rows), 4 * rows, 1e-6)


# The single-channel convolution.


def lax_convolution(planes: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        planes,
        kernel[:, :, None],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=planes.shape[-1],
        precision="highest",
    )


def with_gradients(convolution, planes, kernel, stride):
    """The output, and both gradients for a random cotangent."""

    batch, height, width, nodes = planes.shape
    shape = (batch, -(-height // stride), -(-width // stride), nodes)
    cotangent = normal(shape, 2, jnp.bfloat16).astype(planes.dtype)

    @jax.jit
    def run(planes, kernel, cotangent):
        out, pull = jax.vjp(lambda p, k: convolution(p, k, stride), planes, kernel)
        return out, *pull(cotangent)

    return run(planes, kernel, cotangent)


SIZES = [  # batch, height, width, nodes; stride
    ((1, 8, 8, 5), 1),
    ((2, 7, 5, 3), 2),
    ((3, 5, 8, 2), 1),
    ((4, 9, 9, 2), 2),
    ((6, 4, 4, 3), 2),
    ((2, 1, 1, 2), 1),
    ((1, 2, 3, 1), 2),
]


@pytest.mark.parametrize(("shape", "stride"), SIZES, ids=str)
def test_convolution(shape: tuple[int, ...], stride: int) -> None:
    planes, kernel = normal(shape, 0), normal((3, 3, shape[-1]), 1)
    ours = with_gradients(depthwise_conv3x3, planes, kernel, stride)
    theirs = with_gradients(lax_convolution, planes, kernel, stride)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        assert mine.dtype == expected.dtype
        close(mine, expected)
    close(ours[0], numpy_forward.convolution3x3(*map(np.float64, (planes, kernel)), stride))


def test_convolution_in_bfloat16() -> None:
    stride = 2
    planes, kernel = normal((4, 9, 8, 6), 0, jnp.bfloat16), normal((3, 3, 6), 1, jnp.bfloat16)
    ours = with_gradients(depthwise_conv3x3, planes, kernel, stride)
    exact = [x.astype(jnp.float32) for x in (planes, kernel)]
    theirs = with_gradients(lax_convolution, *exact, stride)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.bfloat16
        close(mine, expected, 2**-7)


def test_kernel_gradient_of_bfloat16_is_summed_in_float32() -> None:
    # 4096 ones: a sum in bfloat16 stops at 256.
    planes, kernel = jnp.ones((16, 16, 16, 1), jnp.bfloat16), jnp.ones((3, 3, 1), jnp.bfloat16)
    _, pull = jax.vjp(jax.jit(lambda k: depthwise_conv3x3(planes, k)), kernel)
    (gradient,) = pull(jnp.ones_like(planes))
    assert float(gradient[1, 1, 0]) == 4096


# Normalisation.

normalise = jax.jit(instance_norm)


@pytest.mark.parametrize("shape", [(3, 8, 8, 4), (1, 5, 3, 2), (2, 1, 1, 3)], ids=str)
def test_instance_norm(shape: tuple[int, ...]) -> None:
    planes, scale, bias = 2 * normal(shape, 0) + 3, normal(shape[-1:], 1), normal(shape[-1:], 2)
    expected = numpy_forward.instance_norm(*map(np.float64, (planes, scale, bias)))
    close(normalise(planes, scale, bias), expected)


def test_instance_norm_of_nearly_constant_planes() -> None:
    # The variance is that of epsilon: dividing by it must neither overflow nor forget it.
    planes = 1e-3 * normal((2, 4, 4, 3), 0)
    one, zero = jnp.ones(3), jnp.zeros(3)
    close(
        normalise(planes, one, zero),
        numpy_forward.instance_norm(*map(np.float64, (planes, one, zero))),
        1e-4,
    )
    np.testing.assert_array_equal(normalise(jnp.full((1, 4, 4, 3), 7.0), one, zero), 0)


def test_instance_norm_in_bfloat16_has_statistics_in_float32() -> None:
    planes = (normal((2, 8, 8, 3), 0) + 20).astype(jnp.bfloat16)
    scale, bias = normal((3,), 1), normal((3,), 2)
    ours = normalise(planes, scale, bias)
    expected = normalise(planes.astype(jnp.float32), scale, bias).astype(jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, expected)


# Graphs.


def node_values(graph: numpy_forward.Graph) -> NodeValues:
    return NodeValues(*(jnp.asarray(a, jnp.float32) for a in graph[:3]))


def fill(module: BlockedGraph | TimeGraph, graph: numpy_forward.Graph) -> None:
    """Gives a graph of ours, whose edges are all real, the parameters of NumPy's."""
    for name, value in node_values(graph)._asdict().items():
        getattr(module.nodes, name)[...] = value
    module.edges.weight[...] = jnp.asarray(graph.weights, jnp.float32)


def blocked(sizes: list[int], num_outputs: int, graph: numpy_forward.Graph) -> BlockedGraph:
    rngs = nnx.Rngs(0)
    module = BlockedGraph(
        sizes,
        Nodes(sum(sizes), rngs=rngs),
        0.0,
        RULES["complete"],
        inner_outputs=num_outputs,
        rngs=rngs,
    )
    fill(module, graph)
    return module


def in_time(num_outputs: int, dynamics: Dynamics, graph: numpy_forward.Graph) -> TimeGraph:
    num_nodes = len(graph.scale)
    module = TimeGraph(num_nodes, num_outputs, 0.0, RULES["complete"], dynamics, rngs=nnx.Rngs(0))
    fill(module, graph)
    return module


def run(
    module: BlockedGraph | TimeGraph, inputs: np.ndarray, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    return nnx.jit(lambda module, inputs: module(inputs))(module, jnp.asarray(inputs, dtype))


BLOCKS = [3, 4, 2, 3]
INPUTS = numpy_forward.random_planes((2, 5, 4, 3), seed=1)
GRAPH = numpy_forward.Graph.random(12, seed=0)
SLOPE = numpy_forward.random_planes((2, 5, 4, 3), seed=2)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_a_static_graph(num_outputs: int) -> None:
    ends = list(itertools.accumulate(BLOCKS))
    expected = numpy_forward.static(INPUTS, GRAPH, ends, num_outputs)[-1]
    close(run(blocked(BLOCKS, num_outputs, GRAPH), INPUTS), expected)


def test_a_static_graph_of_two_blocks() -> None:
    graph = numpy_forward.Graph.random(8, seed=3)
    expected = numpy_forward.static(INPUTS, graph, [3, 8], 2)[-1]
    close(run(blocked([3, 5], 2, graph), INPUTS), expected)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_states_in_a_static_graph(block: int) -> None:
    """What a block holds as it fires: the outputs of the graph cut off behind it and mute there."""
    ends = list(itertools.accumulate(BLOCKS))
    size, start = ends[block], ends[block - 1]
    weights = GRAPH.weights[:size, :size].copy()
    weights[start:] = 0
    cut = numpy_forward.Graph(
        GRAPH.scale[:size], GRAPH.bias[:size], GRAPH.kernel[..., :size], weights
    )
    ours = run(blocked(BLOCKS[: block + 1], BLOCKS[block], cut), INPUTS)
    close(ours, numpy_forward.static(INPUTS, GRAPH, ends, 2)[block])


def test_outputs_of_a_static_graph_feed_themselves() -> None:
    weights = np.zeros((4, 4))
    weights[3, 3] = weights[0, 3] = 1.0
    graph = GRAPH._replace(
        scale=np.ones(4), bias=np.zeros(4), kernel=GRAPH.kernel[..., :4], weights=weights
    )
    inputs = INPUTS[..., :2]
    sent = numpy_forward.convolution3x3(
        numpy_forward.relu(numpy_forward.instance_norm(inputs, np.ones(2), np.zeros(2))),
        graph.kernel[..., :2],
    )[..., :1]
    own = numpy_forward.convolution3x3(
        numpy_forward.relu(numpy_forward.instance_norm(sent, np.ones(1), np.zeros(1))),
        graph.kernel[..., 3:],
    )
    close(run(blocked([2, 2], 1, graph), inputs), sent + own)


def test_backward_edges_are_never_used() -> None:
    ends = list(itertools.accumulate(BLOCKS))
    block_of = np.repeat(range(4), BLOCKS)
    backward = block_of[:, None] >= block_of[None, :]
    backward[9:, 9:] = False  # the last block feeds the outputs, here all of itself
    changed = GRAPH._replace(weights=np.where(backward, 5.0, GRAPH.weights))
    close(
        run(blocked(BLOCKS, 3, changed), INPUTS),
        numpy_forward.static(INPUTS, GRAPH, ends, 3)[-1],
    )
    gradient = weight_gradient(blocked(BLOCKS, 3, GRAPH), INPUTS)
    np.testing.assert_array_equal(gradient[backward], 0)
    assert np.all(gradient[~backward] != 0)


def weight_gradient(module: BlockedGraph | TimeGraph, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(gradients(module, inputs)["edges"]["weight"])


def gradients(module: BlockedGraph | TimeGraph, inputs: np.ndarray) -> dict:
    """Of the outputs' sum weighted by `SLOPE`."""

    @nnx.jit
    def run(module, inputs):
        return nnx.grad(lambda module: jnp.sum(module(inputs) * jnp.float32(SLOPE)))(module)

    return nnx.to_pure_dict(run(module, jnp.asarray(inputs, jnp.float32)))


def test_backward_edges_of_the_published_random_graph() -> None:
    forbidden = np.asarray(backward_edges(800, 800, 32, 100))
    expected = np.zeros((800, 800), bool)
    for step in range(8):
        expected[32 + 100 * step : 32 + 100 * (step + 1), : 100 * (step + 1)] = True
    np.testing.assert_array_equal(forbidden, expected)


def test_a_random_static_graph_draws_none_of_them() -> None:
    sizes = [4, 8, 8, 8]
    rngs = nnx.Rngs(0)
    nodes, sparsity = Nodes(28, rngs=rngs), 1 - 150 / 28**2
    module = BlockedGraph(sizes, nodes, sparsity, RULES["random"], inner_outputs=5, rngs=rngs)
    mask = np.asarray(module.edges.real_edges())
    assert np.count_nonzero(mask) == 150
    assert not np.any(mask & np.asarray(backward_edges(28, 28, 4, 5)))


@pytest.mark.parametrize(("num_steps", "num_outputs"), [(1, 12), (1, 2), (2, 12), (4, 12), (4, 2)])
def test_discrete_time(num_steps: int, num_outputs: int) -> None:
    ours = run(in_time(num_outputs, DiscreteTime(num_steps), GRAPH), INPUTS)
    close(ours, numpy_forward.discrete(INPUTS, GRAPH, num_steps)[..., 12 - num_outputs :])


def test_discrete_time_is_the_plain_loop() -> None:
    """Leaving out what is zero or not read changes nothing but the order of the sums."""
    inputs, nodes = jnp.asarray(INPUTS, jnp.float32), node_values(GRAPH)
    weights = jnp.asarray(GRAPH.weights, jnp.float32)
    states, step = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, 9))), jax.jit(update)
    for _ in range(4):
        states = step(jax.nn.relu(states), nodes, weights)
    ours = jax.jit(lambda *args: DiscreteTime(4)(*args, slice(10, 12)))(inputs, nodes, weights)
    close(ours, states[..., 10:], 1e-6)


# Static graphs whose last block is read alone, with batch normalisation.

SIZES = [3, 4, 4, 2]


def chained(stride: int = 1) -> tuple[BlockedGraph, numpy_forward.Graph]:
    """Sources 3 + 4 + 4, targets 4 + 4 + 2."""
    graph = numpy_forward.Graph.random(11, seed=4)
    graph = graph._replace(weights=graph.weights[:, 1:])
    rngs = nnx.Rngs(0)
    module = BlockedGraph(
        SIZES,
        BatchNormNodes(11, rngs=rngs),
        0.0,
        RULES["complete"],
        stride=stride,
        rngs=rngs,
    )
    values = {"scale": graph.scale, "bias": graph.bias, "mean": graph.bias, "var": graph.scale**2}
    for name, value in values.items():
        getattr(module.nodes.norm, name)[...] = jnp.asarray(value, jnp.float32)
    module.nodes.kernel[...] = jnp.asarray(graph.kernel, jnp.float32)
    module.edges.weight[...] = jnp.asarray(graph.weights, jnp.float32)
    return module, graph


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_static_graph_with_batch_norm(stride: int, train: bool) -> None:
    module, graph = chained(stride)
    forward = nnx.jit(lambda module, inputs: module(inputs, train=train))
    ours = forward(module, jnp.asarray(INPUTS, jnp.float32))
    running = None if train else (graph.bias, graph.scale**2)
    expected, seen = numpy_forward.chained(INPUTS, graph, SIZES, stride, running)
    close(ours, expected)
    norm = module.nodes.norm
    kept = 0.9 if train else 1.0
    close(norm.mean[...], kept * graph.bias + (1 - kept) * seen[0])
    close(norm.var[...], kept * graph.scale**2 + (1 - kept) * seen[1])


def test_batch_norm_of_some_channels() -> None:
    norm, planes = BatchNorm(5), normal((4, 3, 3, 2), 0)
    ours = norm(planes, train=True, channels=slice(1, 3))
    close(ours, (planes - planes.mean((0, 1, 2))) / np.sqrt(planes.var((0, 1, 2)) + 1e-5))
    np.testing.assert_array_equal(np.asarray(norm.mean[...]) != 0, [0, 1, 1, 0, 0])
    unbiased = np.var(np.asarray(planes, np.float64), axis=(0, 1, 2), ddof=1)
    close(norm.var[1:3], 0.9 + 0.1 * unbiased)


def test_outputs_that_do_not_fit_the_last_block() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="inner_outputs is 5; the last block has 4 nodes"):
        BlockedGraph([2, 4], Nodes(6, rngs=rngs), 0.5, RULES["dnw"], inner_outputs=5, rngs=rngs)


# Continuous time. Silent nodes, states at zero and large steps make the rectification matter.

METHODS = {
    "euler": numpy_forward.EULER,
    "midpoint": numpy_forward.MIDPOINT,
    "heun": numpy_forward.HEUN,
    "ralston": numpy_forward.RALSTON,
}


def test_solvers_are_those_of_the_settings() -> None:
    assert tuple(SOLVERS) == schema.SOLVERS


@pytest.mark.parametrize("name", METHODS)
def test_fixed_steps(name: str) -> None:
    expected = numpy_forward.continuous(INPUTS, GRAPH, 4, METHODS[name])
    assert np.any(expected == 0)  # some states were rectified
    dynamics = ContinuousTime(name, step_size=0.25, max_steps=4)
    close(run(in_time(12, dynamics, GRAPH), INPUTS), expected)


def test_the_last_fixed_step_ends_at_one() -> None:
    # 3 steps of 0.4 would pass t = 1: the last is cut to 0.2.
    graph = GRAPH._replace(weights=np.zeros((12, 12)))  # dZ/dt = bias
    ours = run(in_time(12, ContinuousTime("euler", step_size=0.4), graph), INPUTS)
    close(ours, straight(graph))


def straight(graph: numpy_forward.Graph) -> np.ndarray:
    """Z(1) without edges: the normalised zeros are the biases, until a state reaches zero."""
    start = numpy_forward.relu(numpy_forward.padded(INPUTS, graph))
    return numpy_forward.relu(start + graph.bias)


@pytest.mark.parametrize("name", ["dopri5", "dopri8", "tsit5", "bosh3", "heun"])
def test_adaptive_steps_converge(name: str) -> None:
    fine = numpy_forward.continuous(INPUTS, GRAPH, 400)
    dynamics = ContinuousTime(name, rtol=1e-4, atol=1e-4, max_steps=1000)
    ours = run(in_time(12, dynamics, GRAPH), INPUTS)
    # Between two steps, the last of them past the end, a polynomial may fall below zero.
    close(numpy_forward.relu(np.asarray(ours)), fine, 1e-2)


@pytest.mark.parametrize("step_size", [0.0, 0.25])
def test_too_few_steps_give_nan(step_size: float) -> None:
    dynamics = ContinuousTime("heun", rtol=1e-5, atol=1e-5, step_size=step_size, max_steps=3)
    assert np.all(np.isnan(run(in_time(2, dynamics, GRAPH), INPUTS)))


@functools.partial(jax.jit, static_argnums=(2, 3))
def estimate(start, args, rtol, atol):
    how = Evolution(field, SOLVERS["dopri5"], slice(None), rtol, atol, step_size=0.0, max_steps=1)
    return first_step(how, start, field(start, args)[0], args)


def test_the_first_step() -> None:
    """Hairer, Norsett, Wanner: Solving Ordinary Differential Equations I, section II.4."""
    rtol, atol, order = 1e-3, 1e-2, 5
    start = numpy_forward.relu(numpy_forward.padded(INPUTS, GRAPH))
    slope = numpy_forward.update(start, GRAPH)
    scale = atol + rtol * np.abs(start)

    def rms(x: np.ndarray) -> float:
        return np.sqrt(np.mean(x**2))

    guess = 0.01 * rms(start / scale) / rms(slope / scale)
    bend = rms((numpy_forward.update(start + guess * slope, GRAPH) - slope) / scale) / guess
    step = min(100 * guess, (0.01 / max(rms(slope / scale), bend)) ** (1 / order))
    args = (node_values(GRAPH), jnp.asarray(GRAPH.weights, jnp.float32))
    ours = estimate(jnp.asarray(start, jnp.float32), args, rtol, atol)
    assert float(ours) == pytest.approx(step, rel=1e-3)


def test_the_first_step_from_rest() -> None:
    nodes, weights = node_values(GRAPH), jnp.zeros((12, 12))
    rest = jnp.zeros((1, 4, 4, 12))
    # All zero, and nothing moves: a millionth, then a hundred times that at most.
    still = estimate(rest, (nodes._replace(bias=jnp.zeros(12)), weights), 1e-3, 1e-3)
    assert float(still) == pytest.approx(1e-6)
    moving = estimate(rest, (nodes, weights), 1e-3, 1e-3)
    assert float(moving) == pytest.approx(1e-4)


# Gradients, against central differences of the NumPy networks in float64.

FIXED = ContinuousTime("midpoint", step_size=0.25, max_steps=4)
FORWARD = {
    "static": lambda graph: numpy_forward.static(INPUTS, graph, [3, 7, 9, 12], 3)[-1],
    "discrete": lambda graph: numpy_forward.discrete(INPUTS, graph, 3)[..., 9:],
    "continuous": lambda graph: numpy_forward.continuous(INPUTS, graph, 4, numpy_forward.MIDPOINT)[
        ..., 9:
    ],
}


def graph_of(wiring: str) -> BlockedGraph | TimeGraph:
    if wiring == "static":
        return blocked(BLOCKS, 3, GRAPH)
    return in_time(3, DiscreteTime(3) if wiring == "discrete" else FIXED, GRAPH)


@pytest.mark.parametrize("wiring", FORWARD)
def test_gradients(wiring: str) -> None:
    ours = gradients(graph_of(wiring), INPUTS)
    ours = {**ours["nodes"], "weights": ours["edges"]["weight"]}
    for name, gradient in ours.items():
        # Every single weight, those of edges that carry nothing among them.
        close(gradient, differences(FORWARD[wiring], GRAPH, name), 1e-3)


def differences(forward, graph: numpy_forward.Graph, name: str) -> np.ndarray:
    values, step = getattr(graph, name), 1e-6

    def energy(index: tuple[int, ...], change: float) -> float:
        changed = values.copy()
        changed[index] += change
        return np.sum(SLOPE * forward(graph._replace(**{name: changed})))

    return np.array(
        [
            (energy(index, step) - energy(index, -step)) / (2 * step)
            for index in np.ndindex(values.shape)
        ]
    ).reshape(values.shape)


@pytest.mark.parametrize("num_steps", [3, 6, 7, 25])
def test_gradients_of_more_steps_than_states_are_saved(num_steps: int) -> None:
    """Against autodiff of the plain loop; up to six steps are saved, then every second, ..."""
    args = (node_values(GRAPH), jnp.asarray(GRAPH.weights, jnp.float32))
    inputs = jax.nn.relu(jnp.asarray(INPUTS, jnp.float32))
    silent = len(GRAPH.weights) - inputs.shape[-1]
    slope = normal((*inputs.shape[:-1], len(GRAPH.weights)), 7)
    how = Evolution(field, SOLVERS["euler"], slice(None), 0.0, 0.0, 1 / num_steps, num_steps)

    @jax.jit
    @jax.grad
    def ours(point):
        return jnp.vdot(slope, evolve(how, *point))

    @jax.jit
    @jax.grad
    def plain(point):
        inputs, args = point
        state = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, silent)))
        for _ in range(num_steps):
            state = jax.nn.relu(state + field(state, args)[0] / num_steps)
        return jnp.vdot(slope, state)

    pairs = zip(*(jax.tree.leaves(each((inputs, args))) for each in (ours, plain)), strict=True)
    for leaf, other in pairs:
        close(leaf, other, 1e-4)


def test_gradients_of_steps_that_were_saved_and_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many adaptive steps, some of them refused at first."""
    args = (node_values(GRAPH), jnp.asarray(3 * GRAPH.weights, jnp.float32))
    start = jax.nn.relu(jnp.asarray(numpy_forward.padded(INPUTS, GRAPH), jnp.float32))
    how = Evolution(field, SOLVERS["dopri5"], slice(None), 1e-6, 1e-6, 0.0, 100)

    def gradients_with(slots: int) -> list[np.ndarray]:
        monkeypatch.setattr(evolution, "_MAX_SAVED", slots)
        gradient = jax.jit(jax.grad(lambda point: jnp.sum(evolve(how, *point) ** 2)))
        return jax.tree.leaves(gradient((start, args)))

    for all_saved, few_saved in zip(gradients_with(64), gradients_with(2), strict=True):
        close(all_saved, few_saved, 1e-4)


def test_gradients_of_the_adaptive_solve() -> None:
    ours = gradients(in_time(3, ContinuousTime(rtol=1e-4, atol=1e-4), GRAPH), INPUTS)
    for leaf in jax.tree.leaves(ours):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)
    fine = differences(lambda g: numpy_forward.continuous(INPUTS, g, 16)[..., 9:], GRAPH, "bias")
    mine = np.asarray(ours["nodes"]["bias"])
    # The interpolation at the end is coarse: the same direction, not the same numbers.
    assert mine @ fine > 0.95 * np.linalg.norm(mine) * np.linalg.norm(fine)


@pytest.mark.parametrize("wiring", FORWARD)
def test_bfloat16_planes(wiring: str) -> None:
    """Weights stay float32, planes are bfloat16; no silent promotion anywhere."""
    ours = run(graph_of(wiring), INPUTS, jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    close(ours, FORWARD[wiring](GRAPH), 0.1)
