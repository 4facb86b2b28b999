"""Static wirings: nodes in blocks, each block feeds only later ones, one pass (section 2.1)."""

import functools
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import Rule
from dnw_jax.graphs.edge_graph import EdgeGraph
from dnw_jax.graphs.nodes import Nodes, NodeValues


class BlockedGraph(nnx.Module):
    """An acyclic graph whose nodes fire block by block: normalise, activate, send along the edges.

    A block's state is the sum of what all earlier blocks sent it; the first block holds the graph's
    inputs. The last `num_outputs` nodes, part of the last block, are read once that block has fired
    too: it feeds them, themselves included. Entries of the edge matrix that point backwards are
    never used, yet count when edges are chosen: so the published code defines the budget.

    Args:
      block_sizes: number of nodes of each block, inputs first.
      num_outputs: number of nodes read, at most the size of the last block.
    """

    def __init__(
        self,
        block_sizes: Sequence[int],
        num_outputs: int,
        num_edges: int,
        rule: Rule,
        *,
        rngs: nnx.Rngs,
    ):
        num_nodes = sum(block_sizes)
        if num_outputs > block_sizes[-1]:
            raise ValueError(
                f"num_outputs is {num_outputs}; the last block has {block_sizes[-1]} nodes, no more"
            )
        self.block_sizes = tuple(block_sizes)
        self.num_outputs = num_outputs
        self.nodes = Nodes(num_nodes, rngs=rngs)
        self.edges = EdgeGraph(
            num_nodes,
            num_nodes,
            num_edges,
            rule,
            forbidden=backward_edges(num_nodes, block_sizes[0], num_outputs),
            rngs=rngs,
        )

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        """The states of the output nodes."""
        nodes = self.nodes.values()
        weights = self.edges.real_weights(train=train, key=key).astype(inputs.dtype)
        ends = [0, *itertools.accumulate(self.block_sizes)]
        blocks = [slice(start, end) for start, end in itertools.pairwise(ends)]
        # What each block has been sent stays in pieces, summed in one pass when the block fires;
        # adding to one growing state would copy that state at every block.
        sent: list[list[Array]] = [[inputs], *([] for _ in blocks[1:])]
        for index, block in enumerate(blocks[:-1]):
            fired = _fire(sent[index], nodes.of(block))
            signal = fired @ weights[block, block.stop :]
            ends_here = [later.stop - block.stop for later in blocks[index + 1 : -1]]
            for target, piece in enumerate(jnp.split(signal, ends_here, -1), start=index + 1):
                sent[target].append(piece)
        last = blocks[-1]
        outputs = functools.reduce(jnp.add, (piece[..., -self.num_outputs :] for piece in sent[-1]))
        return outputs + _fire(sent[-1], nodes.of(last)) @ weights[last, -self.num_outputs :]


def _fire(sent: list[Array], nodes: NodeValues) -> Array:
    return nodes.activate(nodes.normalise(functools.reduce(jnp.add, sent)))


def backward_edges(
    num_nodes: int, num_inputs: int, num_outputs: int
) -> Bool[Array, "sources targets"]:
    """The edges that a random static graph may not draw, as the published code excludes them.

    It counts in steps of `num_outputs` from the inputs on, whatever the blocks are: sources of step
    j, those from `num_inputs + j * num_outputs` on, may not reach targets below
    `(j + 1) * num_outputs`.
    """
    source = jnp.arange(num_nodes)[:, None]
    target = jnp.arange(num_nodes)[None, :]
    step = (source - num_inputs) // num_outputs
    return (source >= num_inputs) & (target < (step + 1) * num_outputs)
