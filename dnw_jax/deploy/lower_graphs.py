"""Lowers the graphs: blocked, in discrete time, and one evaluation of a field."""

import itertools
from typing import Any

import numpy as np

from dnw_jax.deploy.builder import Builder, numbers
from dnw_jax.deploy.network import Wiring
from dnw_jax.deploy.operations import Add, AppendZeros, Norm, Operation, Slice, Solve
from dnw_jax.deploy.products import Depthwise, Edges
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.nodes import BatchNormNodes, FiringNodes, Nodes
from dnw_jax.graphs.sparse_layer import SparseLayer, SparseLinear
from dnw_jax.graphs.time_graph import TimeGraph


class GraphBuilder:
    """Appends the operations of the nodes and edges of one graph.

    Its methods work on a range of nodes. `value` is the name of the value whose channels are the
    planes of these nodes; each method returns the name of the value that it added.

    Args:
      builder: the network that the operations and the wiring are added to.
      part: name of the graph.
      edges: its edges, which are chosen here, once. Their targets are the last nodes.
      parameters: the parameters of the nodes; None if they only send and receive.
      num_inputs, num_outputs: how many of the first and last nodes are inputs and outputs.
      num_nodes: number of all nodes.
    """

    def __init__(
        self,
        builder: Builder,
        part: str,
        edges: SparseLayer,
        parameters: FiringNodes | None,
        *,
        num_inputs: int,
        num_outputs: int,
        num_nodes: int,
    ):
        self._builder, self._part, self._parameters = builder, part, parameters
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
        self.all_nodes = range(num_nodes)
        self.inputs, self.outputs = self.all_nodes[:num_inputs], self.all_nodes[-num_outputs:]

    def add(self, kind: type[Operation], label: str, *inputs: str, **fields: Any) -> str:
        """Appends an operation of this graph."""
        return self._builder.add(kind, self._part, label, *inputs, **fields)

    def relu(self, label: str, value: str, nodes: range) -> str:
        """Appends a ReLU."""
        return self._builder.relu(self._part, label, value, nodes=nodes)

    def norm(self, label: str, value: str, nodes: range) -> str:
        """Appends the norm of `nodes`: of each image's pixels, or by running statistics."""
        if isinstance(self._parameters, BatchNormNodes):
            norm = self._parameters.norm
            return self._builder.batch_norm(self._part, label, value, norm, nodes=nodes)
        assert isinstance(self._parameters, Nodes)
        scale = numbers(self._parameters.scale[_slice(nodes)])
        bias = numbers(self._parameters.bias[_slice(nodes)])
        return self.add(Norm, label, value, scale=scale, bias=bias, nodes=nodes)

    def depthwise(self, label: str, value: str, nodes: range, stride: int = 1) -> str:
        """Appends the convolution of each node's plane."""
        assert isinstance(self._parameters, BatchNormNodes | Nodes)
        kernel = numbers(self._parameters.kernel[..., _slice(nodes)])
        return self.add(Depthwise, label, value, kernel=kernel, stride=stride, nodes=nodes)

    def edges(self, label: str, value: str, sources: range, targets: range) -> str:
        """Appends the signal that `sources` send to `targets`.

        Args:
          label: ends the name of the signal.
          value: the planes of `sources`.
          sources, targets: numbers of nodes. Only the chosen edges between them carry signal.
        """
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


def lower_blocked(builder: Builder, part: str, graph: BlockedGraph, value: str) -> str:
    """Appends a static graph.

    Each pair of blocks has its own `Edges`, and an `Add` sums what a block receives.

    Args:
      builder: the network that the graph is added to.
      part: name of the graph.
      graph: the graph, which may shrink the planes by its stride.
      value: name of the states of the inputs, which have one channel for each input.

    Returns:
      The name of the states of the outputs.
    """
    ends = [0, *itertools.accumulate(graph.block_sizes)]
    blocks = [range(start, end) for start, end in itertools.pairwise(ends)]
    reads_last_block = graph.inner_outputs is None
    graph_builder = GraphBuilder(
        builder,
        part,
        graph.edges,
        graph.nodes,
        num_inputs=len(blocks[0]),
        num_outputs=graph.inner_outputs or len(blocks[-1]),
        num_nodes=ends[-1],
    )
    fired: list[str] = []
    for index, block in enumerate(blocks):
        if index > 0:
            received = [
                graph_builder.edges(f"block_{source}_to_{index}", planes, blocks[source], block)
                for source, planes in enumerate(fired)
            ]
            value = received[0]
            if len(received) > 1:
                value = graph_builder.add(Add, f"block_{index}.state", *received, nodes=block)
        if reads_last_block and index == len(blocks) - 1:
            return value
        active = graph_builder.norm(f"block_{index}.norm", value, block)
        active = graph_builder.relu(f"block_{index}.relu", active, block)
        stride = graph.stride if index == 0 else 1
        fired.append(graph_builder.depthwise(f"block_{index}.fired", active, block, stride))
    outputs = graph_builder.outputs
    channels = range(len(blocks[-1]))[-len(outputs) :]
    state = graph_builder.add(Slice, "outputs.state", value, channels=channels, nodes=outputs)
    received_last = graph_builder.edges("last_block_to_outputs", fired[-1], blocks[-1], outputs)
    return graph_builder.add(Add, "outputs", state, received_last, nodes=outputs)


def lower_in_time(builder: Builder, part: str, graph: TimeGraph, value: str) -> str:
    """Appends a graph in time.

    Discrete time is unrolled: in the first step only the inputs send, in the last step only the
    outputs receive. In continuous time only one evaluation of the field is appended.

    Args:
      builder: the network that the graph is added to.
      part: name of the graph.
      graph: the graph.
      value: name of the states of the inputs, which have one channel for each input.

    Returns:
      The name of the states of the outputs.
    """
    graph_builder = GraphBuilder(
        builder,
        part,
        graph.edges,
        graph.nodes,
        num_inputs=builder.sizes[value].channels,
        num_outputs=graph.num_outputs,
        num_nodes=graph.edges.weights.shape[0],
    )
    all_nodes, outputs = graph_builder.all_nodes, graph_builder.outputs
    active = graph_builder.relu("inputs.relu", value, graph_builder.inputs)
    if not isinstance(graph.dynamics, DiscreteTime):
        start = graph_builder.add(
            AppendZeros, "start", active, num_channels=len(all_nodes), nodes=all_nodes
        )
        derivative = _lower_next_states(graph_builder, "field", start, all_nodes, all_nodes)
        state = graph_builder.add(Solve, "end", start, derivative, nodes=all_nodes)
        return graph_builder.add(Slice, "outputs", state, channels=outputs, nodes=outputs)
    sources = graph_builder.inputs
    for step in range(graph.dynamics.num_steps - 1):
        state = _lower_next_states(graph_builder, f"step_{step}", active, sources, all_nodes)
        active, sources = graph_builder.relu(f"step_{step}.relu", state, all_nodes), all_nodes
    return _lower_next_states(graph_builder, "last_step", active, sources, outputs)


def _lower_next_states(
    graph_builder: GraphBuilder, label: str, active: str, sources: range, targets: range
) -> str:
    """Appends f(W Z) of rectified states Z: convolve, send along the edges, normalise."""
    fired = graph_builder.depthwise(f"{label}.fired", active, sources)
    received = graph_builder.edges(f"{label}.received", fired, sources, targets)
    return graph_builder.norm(f"{label}.norm", received, targets)


def lower_sparse_linear(builder: Builder, part: str, layer: SparseLinear, features: str) -> str:
    """Appends a sparse linear layer as a graph: its nodes are the features, then the classes.

    Args:
      builder: the network that the layer is added to.
      part: name of the layer.
      layer: the layer, which has no bias.
      features: name of the planes of one pixel that the layer reads.

    Returns:
      The name of the logits.
    """
    num_features, num_classes = layer.weights.shape
    graph_builder = GraphBuilder(
        builder,
        part,
        layer,
        None,
        num_inputs=num_features,
        num_outputs=num_classes,
        num_nodes=num_features + num_classes,
    )
    return graph_builder.edges("logits", features, graph_builder.inputs, graph_builder.outputs)


def _slice(nodes: range) -> slice:
    return slice(nodes.start, nodes.stop)
