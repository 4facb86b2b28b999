"""The tiny networks in plain NumPy and float64, written from the paper: what ours must compute.

Written without a look at `dnw_jax.deploy.operations`, in float64 and pixel by pixel, so that both
do not share a mistake. It also covers training and the solvers with fixed steps.

Parameters have the layout of the package: planes [batch, height, width, nodes], kernels
[3, 3, nodes], edge matrices [sources, targets] with zeros where no edge is real.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Graph(NamedTuple):
    """The parameters of a graph."""

    scale: Array
    bias: Array
    kernel: Array
    weights: Array

    @classmethod
    def random(cls, num_nodes: int, seed: int, density: float = 0.6) -> "Graph":
        """A graph with signal everywhere. Its values are float32 numbers: ours gets the same."""
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(num_nodes, num_nodes)) * (
            rng.uniform(size=(num_nodes, num_nodes)) < density
        )
        values = (
            1 + 0.3 * rng.normal(size=num_nodes),
            0.3 * rng.normal(size=num_nodes),
            rng.normal(size=(3, 3, num_nodes)) / 3,
            weights / np.sqrt(density * num_nodes),
        )
        return cls(*(value.astype(np.float32).astype(np.float64) for value in values))


def random_planes(shape: Sequence[int], seed: int) -> Array:
    """Normal float32 values as float64."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def convolution3x3(planes: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves each plane with its kernel ([3, 3, nodes]), pixel by pixel; zero padding of 1."""
    batch, height, width, nodes = planes.shape
    padded = np.zeros((batch, height + 2, width + 2, nodes))
    padded[:, 1:-1, 1:-1] = planes
    rows, columns = range(0, height, stride), range(0, width, stride)
    out = np.zeros((batch, len(rows), len(columns), nodes))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            window = padded[:, row : row + 3, column : column + 3]
            out[:, i, j] = (window * kernel).sum((1, 2))
    return out


def dense_convolution(planes: Array, kernel: Array, stride: int) -> Array:
    """An ordinary 3x3 convolution, kernel [3, 3, in, out], one output channel after the other."""
    out = []
    for target in range(kernel.shape[3]):
        out.append(convolution3x3(planes, kernel[..., target], stride).sum(-1))
    return np.stack(out, -1)


def normalised(planes: Array, mean: Array, variance: Array, scale: Array, bias: Array) -> Array:
    return (planes - mean) / np.sqrt(variance + 1e-5) * scale + bias


def instance_norm(planes: Array, scale: Array, bias: Array) -> Array:
    mean = planes.mean((1, 2), keepdims=True)
    variance = planes.var((1, 2), keepdims=True)
    return normalised(planes, mean, variance, scale, bias)


def static(inputs: Array, graph: Graph, ends: Sequence[int], num_outputs: int) -> list[Array]:
    """Returns the states of the blocks when they fire, then those of the outputs.

    Block i ends before node `ends[i]`.
    """
    num_nodes = len(graph.scale)
    states = np.zeros((*inputs.shape[:3], num_nodes))
    states[..., : inputs.shape[-1]] = inputs
    fired = []
    for start, end in zip([0, *ends], ends, strict=False):
        block = slice(start, end)
        fired.append(states[..., block].copy())
        out = instance_norm(states[..., block], graph.scale[block], graph.bias[block])
        out = convolution3x3(relu(out), graph.kernel[..., block])
        targets = slice(min(end, num_nodes - num_outputs), None)
        states[..., targets] += out @ graph.weights[block, targets]
    return [*fired, states[..., num_nodes - num_outputs :]]


def chained(
    inputs: Array,
    graph: Graph,
    sizes: Sequence[int],
    stride: int,
    running: tuple[Array, Array] | None,
) -> tuple[Array, tuple[Array, Array]]:
    """Returns the last block's states, and the mean and unbiased variance of each node's state.

    Weights are [all but the last block, all but the first]. `running` holds the running mean and
    variance; None: training.
    """
    means, variances = np.zeros(len(graph.scale)), np.zeros(len(graph.scale))
    ends = np.cumsum(sizes)
    start = 0
    states = np.zeros((*inputs.shape[:3], sum(sizes)))[:, ::stride, ::stride]
    for end in ends[:-1]:
        block = slice(start, end)
        state = inputs if start == 0 else states[..., block]
        mean, variance = state.mean((0, 1, 2)), state.var((0, 1, 2))
        means[block], variances[block] = mean, state.var((0, 1, 2), ddof=1)
        if running is not None:
            mean, variance = (statistic[block] for statistic in running)
        out = relu(normalised(state, mean, variance, graph.scale[block], graph.bias[block]))
        out = convolution3x3(out, graph.kernel[..., block], stride if start == 0 else 1)
        states[..., end:] += out @ graph.weights[block, end - sizes[0] :]
        start = end
    return states[..., start:], (means, variances)


def update(states: Array, graph: Graph) -> Array:
    """f(W Z) of graphs in time."""
    out = convolution3x3(relu(states), graph.kernel) @ graph.weights
    return instance_norm(out, graph.scale, graph.bias)


def padded(inputs: Array, graph: Graph) -> Array:
    """Z(0): the inputs, and zeros for all other nodes."""
    num_others = len(graph.scale) - inputs.shape[-1]
    return np.concatenate([inputs, np.zeros((*inputs.shape[:3], num_others))], -1)


def discrete(inputs: Array, graph: Graph, num_steps: int) -> Array:
    """States of all nodes after `num_steps` updates."""
    states = padded(inputs, graph)
    for _ in range(num_steps):
        states = update(states, graph)
    return states


# Explicit Runge-Kutta methods: the stages' coefficients, then the weights of the sum.
RK4 = ([[1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])


def continuous(
    inputs: Array, graph: Graph, num_steps: int, method: tuple[list, list] = RK4
) -> Array:
    """States of all nodes at t = 1; `update` and the end of each step rectify negative ones."""
    states = relu(padded(inputs, graph))
    stages, weights = method
    for _ in range(num_steps):
        slopes = [update(states, graph)]
        for row in stages:
            moved = sum(a * slope for a, slope in zip(row, slopes, strict=True)) / num_steps
            slopes.append(update(states + moved, graph))
        change = sum(b * slope for b, slope in zip(weights, slopes, strict=True)) / num_steps
        states = relu(states + change)
    return states


def stem(images: Array, params: dict, train: bool) -> Array:
    """The stem of the tiny classifiers; `params` is nested as the attributes of the module."""

    def batch_norm(planes: Array, norm: dict) -> Array:
        mean, variance = norm["mean"], norm["var"]
        if train:
            mean, variance = planes.mean((0, 1, 2)), planes.var((0, 1, 2))
        return normalised(planes, mean, variance, norm["scale"], norm["bias"])

    out = dense_convolution(images, params["conv"]["kernel"], 2) + params["conv"]["bias"]
    out = relu(batch_norm(out, params["conv_norm"]))
    out = convolution3x3(out, params["depthwise_kernel"], 2) + params["depthwise_bias"]
    out = out @ params["mix"]["kernel"][0, 0] + params["mix"]["bias"]
    return batch_norm(out, params["mix_norm"])
