"""Discrete time: Z(l+1) = f(W Z(l)) for a number of steps (section 2.3)."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Bool, Float

from dnw_jax.graphs.nodes import EVERY_NODE, NodeValues
from dnw_jax.graphs.time_graph import next_states


@dataclass(frozen=True)
class DiscreteTime:
    """Updates all nodes `num_steps` times.

    The first update leaves out the products of nodes other than the inputs, which are zero. The
    last one leaves out those that lead to nodes other than the outputs, which nobody reads. With
    800 nodes and 5 steps these are 37 % of all products.
    """

    num_steps: int

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        nodes: NodeValues,
        weights: Float[Array, "nodes nodes"],
        outputs: slice,
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        """Returns the states of the `outputs` nodes after the last update; see `Dynamics`."""
        del mask  # no example influences another
        rectified, sources = jax.nn.relu(inputs), slice(inputs.shape[-1])
        for _ in range(self.num_steps - 1):
            rectified = next_states(rectified, nodes, weights, sources, rectify=True)
            sources = EVERY_NODE
        return next_states(rectified, nodes, weights, sources, outputs)
