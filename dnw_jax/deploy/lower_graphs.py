"""Lowers the graphs: blocked, in discrete time, and one evaluation of a field."""

import itertools

import numpy as np
from flax import nnx

from dnw_jax.deploy.builder import Builder, numbers
from dnw_jax.deploy.network import Wiring
from dnw_jax.deploy.operations import Add, AppendZeros, Depthwise, Edges, Norm, Slice, Solve
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.nodes import BatchNormNodes, Nodes
from dnw_jax.graphs.sparse_layer import SparseLayer
from dnw_jax.graphs.time_graph import TimeGraph


class GraphBuilder:
    """Appends the operations of the nodes and edges of one graph.

    Args:
      part: name of the graph.
      edges: its edges, which are chosen here, once.
      num_inputs, num_outputs: how many of its first and last nodes are inputs and outputs.
      num_nodes: all nodes; the targets are the last ones.
    """

    def __init__(
        self,
        builder: Builder,
        part: str,
        edges: SparseLayer,
        *,
        num_inputs: int,
        num_outputs: int,
        num_nodes: int,
    ):
        self._builder, self._part = builder, part
        self._weights = numbers(edges.real_weights())
        mask = np.asarray(edges.real_edges())
        self._wiring = builder.wirings[part] = Wiring(
            mask=mask,
            sources=range(mask.shape[0]),
            targets=range(num_nodes - mask.shape[1], num_nodes),
            num_inputs=num_inputs,
            num_outputs=num_outputs,
            sparsity=edges.sparsity,
        )
        self.inputs = range(num_inputs)
        self.outputs = range(num_nodes - num_outputs, num_nodes)
        self.all_nodes = range(num_nodes)

    def add(self, kind: type, label: str, *inputs: str, **fields: object) -> str:
        """Appends an operation of this graph."""
        return self._builder.add(kind, self._part, label, *inputs, **fields)

    def relu(self, label: str, value: str, nodes: range) -> str:
        """Appends a ReLU."""
        return self._builder.relu(self._part, label, value, nodes=nodes)

    def edges(self, label: str, value: str, sources: range, targets: range) -> str:
        """Appends the signal from some nodes to some others."""
        first = self._wiring.targets.start
        rectangle = (_slice(sources), slice(targets.start - first, targets.stop - first))
        return self.add(
            Edges,
            label,
            value,
            weights=self._weights[rectangle],
            mask=self._wiring.mask[rectangle],
            sources=sources,
            nodes=targets,
        )

    def depthwise(
        self, label: str, value: str, kernel: nnx.Param, nodes: range, stride: int = 1
    ) -> str:
        """Appends the convolution of each node's plane."""
        chosen = numbers(kernel[..., _slice(nodes)])
        return self.add(Depthwise, label, value, kernel=chosen, stride=stride, nodes=nodes)

    def norm(self, label: str, value: str, parameters: object, nodes: range) -> str:
        """Appends the norm of some nodes: of each image, or by running statistics."""
        if isinstance(parameters, BatchNormNodes):
            return self._builder.batch_norm(
                self._part, label, value, parameters.norm, nodes=nodes
            )
        assert isinstance(parameters, Nodes)
        scale, bias = (
            numbers(variable[_slice(nodes)]) for variable in (parameters.scale, parameters.bias)
        )
        return self.add(Norm, label, value, scale=scale, bias=bias, nodes=nodes)


def lower_graph(
    builder: Builder, part: str, graph: object, value: str, num_outputs: int
) -> str:
    """Appends a graph whose inputs are the channels of `value`; returns the states it is read at."""
    assert isinstance(graph, BlockedGraph | TimeGraph)
    num_nodes = sum(graph.block_sizes) if isinstance(graph, BlockedGraph) else len(graph.edges.weights)
    parts = GraphBuilder(
        builder,
        part,
        graph.edges,
        num_inputs=builder.sizes[value].channels,
        num_outputs=num_outputs,
        num_nodes=num_nodes,
    )
    if isinstance(graph, BlockedGraph):
        return _lower_blocked(parts, graph, value)
    active = parts.relu("inputs.relu", value, parts.inputs)
    if isinstance(graph.dynamics, DiscreteTime):
        return _lower_discrete(parts, graph.nodes, active, graph.dynamics.num_steps)
    return _lower_field(parts, graph.nodes, active)


def _lower_blocked(parts: GraphBuilder, graph: BlockedGraph, value: str) -> str:
    ends = [0, *itertools.accumulate(graph.block_sizes)]
    blocks = [range(start, end) for start, end in itertools.pairwise(ends)]
    state, fired = value, []
    for index, block in enumerate(blocks):
        name = f"block_{index}"
        if index > 0:
            received = [
                parts.edges(f"block_{source}_to_{index}", fired[source], blocks[source], block)
                for source in range(index)
            ]
            state = received[0]
            if index > 1:
                state = parts.add(Add, f"{name}.state", *received, nodes=block)
        if block is blocks[-1] and graph.inner_outputs is None:
            return state
        active = parts.norm(f"{name}.norm", state, graph.nodes, block)
        active = parts.relu(f"{name}.relu", active, block)
        stride = graph.stride if index == 0 else 1
        kernel = graph.nodes.kernel
        fired.append(parts.depthwise(f"{name}.fired", active, kernel, block, stride))
    outputs = parts.outputs
    in_block = range(len(blocks[-1]) - len(outputs), len(blocks[-1]))
    before = parts.add(Slice, "outputs.before", state, channels=in_block, nodes=outputs)
    received_last = parts.edges("last_to_outputs", fired[-1], blocks[-1], outputs)
    return parts.add(Add, "outputs", before, received_last, nodes=outputs)


def _lower_discrete(parts: GraphBuilder, nodes: Nodes, active: str, num_steps: int) -> str:
    """In the first step only the inputs send, in the last only the outputs receive."""
    sources = parts.inputs
    for step in range(num_steps):
        last = step == num_steps - 1
        targets = parts.outputs if last else parts.all_nodes
        state = _lower_update(parts, nodes, active, f"step_{step}", sources, targets)
        if last:
            return state
        active, sources = parts.relu(f"step_{step}.relu", state, targets), targets
    raise ValueError(f"num_steps is {num_steps}; it must be at least 1")


def _lower_field(parts: GraphBuilder, nodes: Nodes, active: str) -> str:
    every = parts.all_nodes
    start = parts.add(AppendZeros, "start", active, num_channels=len(every), nodes=every)
    slope = _lower_update(parts, nodes, start, "field", every, every)
    state = parts.add(Solve, "state", start, slope, nodes=every)
    return parts.add(Slice, "outputs", state, channels=parts.outputs, nodes=parts.outputs)


def _lower_update(
    parts: GraphBuilder, nodes: Nodes, active: str, name: str, sources: range, targets: range
) -> str:
    """f(W Z) of rectified states Z: convolve, send along the edges, normalise."""
    fired = parts.depthwise(f"{name}.fired", active, nodes.kernel, sources)
    received = parts.edges(f"{name}.received", fired, sources, targets)
    return parts.norm(f"{name}.norm", received, nodes, targets)


def _slice(numbers_of_nodes: range) -> slice:
    return slice(numbers_of_nodes.start, numbers_of_nodes.stop)
