"""Static wirings: nodes in blocks, each block feeds only later ones, one pass (section 2.1)."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import Rule
from dnw_jax.graphs.edge_graph import EdgeGraph
from dnw_jax.graphs.nodes import EVERY_PIXEL, FiringNodes
from dnw_jax.ops.send import send


class BlockedGraph(nnx.Module):
    """An acyclic graph whose nodes fire block by block: normalise, activate, send along the edges.

    A block's state is the sum of what all earlier blocks sent it; the first block holds the graph's
    inputs. What is read depends on `inner_outputs`:

    - None: the last block. It does not fire; nothing feeds the first. The edge matrix is
      [all nodes but the last block's, all but the first block's].
    - n: the last n nodes, part of the last block, once that block has fired too: it feeds them,
      themselves included. Every node fires; the edge matrix is [all nodes, all nodes].

    Entries of the edge matrix that point backwards are never used, yet count when edges are chosen:
    so the published code defines the budget.

    Args:
      block_sizes: number of nodes of each block, inputs first.
      nodes: the nodes that fire.
      inner_outputs: None, or at most the size of the last block.
      stride: of the convolution of the first block's nodes.
    """

    def __init__(
        self,
        block_sizes: Sequence[int],
        nodes: FiringNodes,
        sparsity: float,
        rule: Rule,
        *,
        inner_outputs: int | None = None,
        stride: int = 1,
        rngs: nnx.Rngs,
    ):
        if inner_outputs is not None and inner_outputs > block_sizes[-1]:
            raise ValueError(
                f"inner_outputs is {inner_outputs}; the last block has {block_sizes[-1]} nodes"
            )
        self.block_sizes = tuple(block_sizes)
        self.inner_outputs = inner_outputs
        self.stride = stride
        self.nodes = nodes
        shape = edge_matrix_shape(block_sizes, inner_outputs)
        forbidden = backward_edges(*shape, block_sizes[0], inner_outputs or block_sizes[-1])
        self.edges = EdgeGraph(*shape, sparsity, rule, forbidden=forbidden, rngs=rngs)

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        pixels: tuple[slice, slice] = EVERY_PIXEL,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """The states of the output nodes, at those `pixels` (rows and columns) that are wanted."""
        weights = self.edges.real_weights(train=train, key=key).astype(inputs.dtype)
        ends = [0, *itertools.accumulate(self.block_sizes)]
        blocks = [slice(start, end) for start, end in itertools.pairwise(ends)]
        first_column = ends[-1] - weights.shape[1]
        # A product for each pair of blocks: one for each source would have to be taken apart, and
        # one growing state copied at each block.
        cuts = [
            (source.start, source.stop, target.start - first_column, target.stop - first_column)
            for index, target in enumerate(blocks)
            for source in blocks[:index]
        ]
        if self.inner_outputs is not None:
            cuts.append((ends[-2], ends[-1], weights.shape[1] - self.inner_outputs, ends[-1]))
        edges = iter(_parts(tuple(cuts), weights))
        state, fired = inputs, []
        for index, block in enumerate(blocks[:-1]):
            stride = self.stride if index == 0 else 1
            fired.append(self.nodes.fire(state, block, train=train, stride=stride))
            state = functools.reduce(jnp.add, [send(each, next(edges)) for each in fired])
        rows, columns = pixels
        if self.inner_outputs is None:
            return state[:, rows, columns]
        last = self.nodes.fire(state, blocks[-1], train=train)[:, rows, columns]
        return state[:, rows, columns, -self.inner_outputs :] + send(last, next(edges))


Cuts = tuple[tuple[int, int, int, int], ...]  # rows from, to, columns from, to; apart


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _parts(cuts: Cuts, matrix: Array) -> list[Array]:
    """Rectangles of a matrix.

    Their cotangents are written where they belong; autodiff would add up as many whole matrices.
    """
    return [matrix[top:bottom, left:right] for top, bottom, left, right in cuts]


def _parts_forward(cuts: Cuts, matrix: Array) -> tuple[list[Array], Array]:
    return _parts(cuts, matrix), jnp.zeros_like(matrix)


def _parts_backward(cuts: Cuts, zeros: Array, cotangents: list[Array]) -> tuple[Array]:
    for (top, _, left, _), cotangent in zip(cuts, cotangents, strict=True):
        zeros = lax.dynamic_update_slice(zeros, cotangent, (top, left))
    return (zeros,)


_parts.defvjp(_parts_forward, _parts_backward)


def edge_matrix_shape(block_sizes: Sequence[int], inner_outputs: int | None) -> tuple[int, int]:
    """Sources and targets of a blocked graph."""
    num_nodes = sum(block_sizes)
    if inner_outputs is not None:
        return num_nodes, num_nodes
    return num_nodes - block_sizes[-1], num_nodes - block_sizes[0]


def backward_edges(
    num_sources: int, num_targets: int, num_inputs: int, num_outputs: int
) -> Bool[Array, "sources targets"]:
    """The edges that a random static graph may not draw, as the published code excludes them.

    It counts in steps of `num_outputs` from the inputs on, whatever the blocks are: sources of step
    j, those from `num_inputs + j * num_outputs` on, may not reach targets below
    `(j + 1) * num_outputs`.
    """
    source = jnp.arange(num_sources)[:, None]
    target = jnp.arange(num_targets)[None, :]
    step = (source - num_inputs) // num_outputs
    return (source >= num_inputs) & (target < (step + 1) * num_outputs)
