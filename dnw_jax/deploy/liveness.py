"""Which channels of each value, and which edges, the logits depend on: the rest is dead."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from dnw_jax.deploy.network import Network
from dnw_jax.deploy.operations import AppendZeros, Slice, Solve
from dnw_jax.deploy.products import Product


class Live(NamedTuple):
    """The parts of a network that have to be computed.

    Attributes:
      channels: marks the channels of each value whose signal reaches the logits, by the value's
        name.
      edges: marks the edges that carry such signal, for each `Product`, by the name of its output.
        They are real, and their target is a live channel.
    """

    channels: dict[str, Bool[np.ndarray, " channels"]]
    edges: dict[str, Bool[np.ndarray, "*window sources targets"]]


def liveness(network: Network) -> Live:
    """Finds what the logits depend on, in one pass backwards over the operations.

    All logits are needed. A product needs the sources of its live edges; every other operation
    needs the channels of its inputs that its needed channels come from. In continuous time all
    edges of the field are live, because a solver evaluates it many times.

    Returns:
      The live channels and edges.
    """
    channels = {name: np.zeros(size.channels, bool) for name, size in network.sizes.items()}
    channels[network.output][:] = True
    edges = {}
    for operation in reversed(network.operations):
        needed = channels[operation.output]
        match operation:
            case Product():
                live = edges[operation.output] = operation.real_edges & needed
                channels[operation.inputs[0]] |= with_edges(live)
            case Slice():
                kept = slice(operation.channels.start, operation.channels.stop)
                channels[operation.inputs[0]][kept] |= needed
            case AppendZeros():
                value = channels[operation.inputs[0]]
                value |= needed[: len(value)]
            case Solve():
                start, derivative = operation.inputs
                channels[start] |= needed
                channels[derivative][:] = True
            case _:
                for name in operation.inputs:
                    channels[name] |= needed
    return Live(channels, edges)


def with_edges(
    edges: Bool[np.ndarray, "*window sources targets"],
) -> Bool[np.ndarray, " sources"]:
    """Marks the sources that have an edge to some target."""
    *window, _, targets = range(edges.ndim)
    return np.any(edges, axis=(*window, targets))
