"""Small graphs whose parameters are those of NumPy's graphs, and how to compare them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_forward
from flax import nnx

from dnw_jax.edges import RULES
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.nodes import Nodes, NodeValues
from dnw_jax.graphs.time_graph import Dynamics, TimeGraph

BLOCKS = [3, 4, 2, 3]
INPUTS = numpy_forward.random_planes((2, 5, 4, 3), seed=1)
GRAPH = numpy_forward.Graph.random(12, seed=0)
SLOPE = numpy_forward.random_planes((2, 5, 4, 3), seed=2)


def close(ours, expected, tolerance: float = 1e-5) -> None:
    """Asserts that both are equal up to `tolerance` times the largest expected value."""
    expected = np.asarray(expected, np.float64)
    scale = max(1e-12, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(ours, np.float64) / scale, expected / scale, 0, tolerance)


def normal(shape: tuple[int, ...], seed: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jnp.asarray(numpy_forward.random_planes(shape, seed), dtype)


def node_values(graph: numpy_forward.Graph) -> NodeValues:
    return NodeValues(*(jnp.asarray(a, jnp.float32) for a in graph[:3]))


def fill(module: BlockedGraph | TimeGraph, graph: numpy_forward.Graph) -> None:
    """Copies the parameters of NumPy's graph into a module whose edges are all real."""
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


def weight_gradient(module: BlockedGraph | TimeGraph, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(gradients(module, inputs)["edges"]["weight"])


def gradients(module: BlockedGraph | TimeGraph, inputs: np.ndarray) -> dict:
    """Returns the gradients of the sum of the outputs weighted by `SLOPE`."""

    @nnx.jit
    def run(module, inputs):
        return nnx.grad(lambda module: jnp.sum(module(inputs) * jnp.float32(SLOPE)))(module)

    return nnx.to_pure_dict(run(module, jnp.asarray(inputs, jnp.float32)))


def differences(forward, graph: numpy_forward.Graph, name: str) -> np.ndarray:
    """Returns central differences of the sum of the outputs weighted by `SLOPE`."""
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
