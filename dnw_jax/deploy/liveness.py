"""Which nodes and edges of a wiring reach an output: the rest need not be computed."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from dnw_jax.graphs.blocked import BlockedGraph

Array = np.ndarray


class Live(NamedTuple):
    """What of a graph is computed.

    Attributes:
      nodes: nodes that fire; those read but not fired are not among them.
      edges: edges that carry signal from such a node to one that needs it.
    """

    nodes: Bool[Array, " sources"]
    edges: Bool[Array, "sources targets"]


def live_in_blocks(
    graph: BlockedGraph, mask: Bool[Array, "sources targets"], needed: Bool[Array, " outputs"]
) -> Live:
    """What of a static graph reaches the outputs that are `needed`."""
    num_nodes = sum(graph.block_sizes)
    num_sources, num_targets = mask.shape
    first_column = num_nodes - num_targets
    needs = np.zeros(num_nodes, bool)
    needs[num_nodes - len(needed) :] = needed
    nodes, edges = np.zeros(num_sources, bool), np.zeros_like(mask)
    ends = [0, *itertools.accumulate(graph.block_sizes)]
    for start, end in reversed(list(itertools.pairwise(ends))):
        if start >= num_sources:
            continue  # the outputs do not fire
        block, fed = slice(start, end), slice(min(end, num_nodes - len(needed)), num_nodes)
        columns = slice(fed.start - first_column, None)
        edges[block, columns] = mask[block, columns] & needs[fed]
        nodes[block] = np.any(edges[block], axis=1)
        needs[block] |= nodes[block]
    return Live(nodes, edges)


def live_in_time(
    mask: Bool[Array, "nodes nodes"], num_inputs: int, num_outputs: int, num_steps: int
) -> list[Live]:
    """What of a graph in time reaches the outputs, step by step."""
    needs = np.zeros(len(mask), bool)
    needs[len(mask) - num_outputs :] = True
    steps = []
    for step in reversed(range(num_steps)):
        edges = mask & needs
        if step == 0:
            edges[num_inputs:] = False  # all others are still zero
        nodes = np.any(edges, axis=1)
        steps.append(Live(nodes, edges))
        needs = nodes
    return steps[::-1]
