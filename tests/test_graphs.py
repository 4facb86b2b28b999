"""Nodes and graphs in one pass or in discrete time compute what the paper says (in NumPy)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_forward
import pytest
from flax import nnx
from small_graphs import (
    BLOCKS,
    GRAPH,
    INPUTS,
    blocked,
    close,
    differences,
    gradients,
    in_time,
    node_values,
    normal,
    run,
    weight_gradient,
)

from dnw_jax.edges import RULES
from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.blocked import BlockedGraph, backward_edges
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.nodes import BatchNormNodes, Nodes
from dnw_jax.graphs.time_graph import TimeGraph, next_states
from dnw_jax.ops.barriers import barrier
from dnw_jax.ops.norms import batch_norm, instance_norm
from dnw_jax.ops.send import send

pytestmark = pytest.mark.usefixtures("strict_promotion", "quick_compilation")


def test_a_barrier_passes_values_and_gradients() -> None:
    rows = normal((3, 4), 0)

    def passed(row: jax.Array) -> jax.Array:
        doubled, same = barrier((2 * row, row))
        return jnp.sum(doubled * same)

    np.testing.assert_allclose(jax.vmap(passed)(rows), jnp.sum(2 * rows**2, 1), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(passed))(rows), 4 * rows, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda r: jax.vmap(passed)(r).sum())(rows), 4 * rows, 1e-6)


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
    sent_by_outputs = numpy_forward.convolution3x3(
        numpy_forward.relu(numpy_forward.instance_norm(sent, np.ones(1), np.zeros(1))),
        graph.kernel[..., 3:],
    )
    close(run(blocked([2, 2], 1, graph), inputs), sent + sent_by_outputs)


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
    states, step = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, 9))), jax.jit(next_states)
    for _ in range(4):
        states = step(jax.nn.relu(states), nodes, weights)
    ours = jax.jit(lambda *args: DiscreteTime(4)(*args, slice(10, 12)))(inputs, nodes, weights)
    close(ours, states[..., 10:], 1e-6)


# Static graphs whose last block is the output, with batch normalisation.

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


# Gradients, against central differences of the NumPy networks in float64.

FORWARD = {
    "static": lambda graph: numpy_forward.static(INPUTS, graph, [3, 7, 9, 12], 3)[-1],
    "discrete": lambda graph: numpy_forward.discrete(INPUTS, graph, 3)[..., 9:],
}


def graph_of(wiring: str) -> BlockedGraph | TimeGraph:
    return blocked(BLOCKS, 3, GRAPH) if wiring == "static" else in_time(3, DiscreteTime(3), GRAPH)


@pytest.mark.parametrize("wiring", FORWARD)
def test_gradients(wiring: str) -> None:
    ours = gradients(graph_of(wiring), INPUTS)
    ours = {**ours["nodes"], "weights": ours["edges"]["weight"]}
    for name, gradient in ours.items():
        # Every single weight, those of edges that carry no signal among them.
        close(gradient, differences(FORWARD[wiring], GRAPH, name), 1e-3)


@pytest.mark.parametrize("wiring", FORWARD)
def test_bfloat16_planes(wiring: str) -> None:
    """Weights stay float32, planes are bfloat16; no silent promotion anywhere."""
    ours = run(graph_of(wiring), INPUTS, jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    close(ours, FORWARD[wiring](GRAPH), 0.1)


@pytest.mark.parametrize("wiring", FORWARD)
def test_a_mask_changes_nothing(wiring: str) -> None:
    module, inputs = graph_of(wiring), jnp.asarray(INPUTS, jnp.float32)
    masked = module(inputs, mask=jnp.array([True, False]))
    np.testing.assert_array_equal(masked, module(inputs))


# No images: shapes are right, and gradients of parameters are zero.


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (instance_norm, [(4,), (4,)]),
        (lambda *args: batch_norm(*args, True)[0], [(4,), (4,)]),
        (send, [(4, 5)]),
    ],
    ids=["instance_norm", "batch_norm", "send"],
)
def test_of_no_images(function, shapes: list[tuple[int, ...]]) -> None:
    planes, parameters = jnp.ones((0, 8, 8, 4)), [jnp.ones(shape) for shape in shapes]
    out, pull = jax.vjp(function, planes, *parameters)
    to_planes, *to_parameters = jax.jit(pull)(out)
    assert out.shape[:-1] == planes.shape[:-1]
    assert to_planes.shape == planes.shape
    for gradient in to_parameters:
        np.testing.assert_array_equal(gradient, 0)
