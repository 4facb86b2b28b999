"""Graphs in time: all nodes act at once, again and again; what discrete and continuous share."""

from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Key

from dnw_jax.edges import Rule
from dnw_jax.graphs.edge_graph import EdgeGraph
from dnw_jax.graphs.nodes import EVERY_NODE, EVERY_PIXEL, Nodes, NodeValues
from dnw_jax.ops.send import send


def update(
    active: Float[Array, "batch height width sources"],
    nodes: NodeValues,
    weights: Float[Array, "nodes nodes"],
    sources: slice = EVERY_NODE,
    targets: slice = EVERY_NODE,
    *,
    rectify: bool = False,
) -> Float[Array, "batch height width targets"]:
    """f(W Z) of rectified states Z: convolve, send along the edges, normalise the targets.

    With `rectify` the new states are rectified, too.
    """
    signal = send(nodes.of(sources).convolve(active), weights[sources, targets])
    return nodes.of(targets).normalise(signal, rectify=rectify)


@runtime_checkable
class Dynamics(Protocol):
    """How the states of the nodes evolve. A small hashable dataclass: it is part of the model."""

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        nodes: NodeValues,
        weights: Float[Array, "nodes nodes"],
        outputs: slice,
    ) -> Float[Array, "batch height width outputs"]:
        """States of the `outputs` nodes at the end; at first only the first nodes hold signal."""


class TimeGraph(nnx.Module):
    """A graph on which any edge may exist, cycles included (section 2.3).

    Signal enters at the first nodes, one for each input plane; all others start at zero; the last
    `num_outputs` nodes are read at the end. Edges are chosen once for the whole evolution.
    """

    def __init__(
        self,
        num_nodes: int,
        num_outputs: int,
        sparsity: float,
        rule: Rule,
        dynamics: Dynamics,
        *,
        rngs: nnx.Rngs,
    ):
        self.num_outputs = num_outputs
        self.dynamics = dynamics
        self.nodes = Nodes(num_nodes, rngs=rngs)
        self.edges = EdgeGraph(num_nodes, num_nodes, sparsity, rule, rngs=rngs)

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        pixels: tuple[slice, slice] = EVERY_PIXEL,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """The states of the output nodes at the end, at those `pixels` that are wanted."""
        weights = self.edges.real_weights(train=train, key=key).astype(inputs.dtype)
        outputs = slice(weights.shape[1] - self.num_outputs, weights.shape[1])
        rows, columns = pixels
        return self.dynamics(inputs, self.nodes.values(), weights, outputs)[:, rows, columns]
