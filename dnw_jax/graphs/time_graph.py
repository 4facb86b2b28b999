"""Graphs in which all nodes act at the same time, step by step: discrete and continuous time."""

from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import Rule
from dnw_jax.graphs.edge_graph import EdgeGraph
from dnw_jax.graphs.nodes import EVERY_NODE, EVERY_PIXEL, Nodes, NodeValues
from dnw_jax.ops.send import send


def next_states(
    rectified: Float[Array, "batch height width sources"],
    nodes: NodeValues,
    weights: Float[Array, "nodes nodes"],
    sources: slice = EVERY_NODE,
    targets: slice = EVERY_NODE,
    *,
    rectify: bool = False,
) -> Float[Array, "batch height width targets"]:
    """Returns f(W Z): convolve, send along the edges, normalise.

    Args:
      rectified: rectified states of the `sources`.
      nodes: parameters of all nodes.
      weights: edge weights.
      sources: the range of nodes that send; the states of all others are zero.
      targets: the range of nodes whose new states are returned.
      rectify: whether to rectify the new states.
    """
    signal = send(nodes.select(sources).convolve(rectified), weights[sources, targets])
    return nodes.select(targets).normalise(signal, rectify=rectify)


@runtime_checkable
class Dynamics(Protocol):
    """How the states of the nodes change: a small hashable dataclass, static data of the model."""

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        nodes: NodeValues,
        weights: Float[Array, "nodes nodes"],
        outputs: slice,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        """Returns the states of the `outputs` nodes at the end.

        Args:
          inputs: states of the first nodes at the start; all others are zero.
          nodes: parameters of all nodes.
          weights: edge weights; zero where no edge is real.
          outputs: the range of nodes to return.
          mask: marks the real examples; padding must not influence their states. None: all are.
        """


class TimeGraph(nnx.Module):
    """A graph in which any edge may exist, cycles included (section 2.3).

    Signal enters at the first nodes, one for each input plane. All others start at zero. The last
    `num_outputs` nodes are read at the end. A forward pass chooses the edges once.
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
        mask: Bool[Array, " batch"] | None = None,
        pixels: tuple[slice, slice] = EVERY_PIXEL,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the states of the output nodes at the end, at the rows and columns `pixels`.

        `mask` marks the real examples: see `Dynamics`.
        """
        weights = self.edges.real_weights(train=train, key=key).astype(inputs.dtype)
        outputs = slice(weights.shape[1] - self.num_outputs, weights.shape[1])
        rows, columns = pixels
        states = self.dynamics(inputs, self.nodes.values(), weights, outputs, mask)
        return states[:, rows, columns]
