"""Static graphs: nodes in blocks, edges only to later blocks, one pass (section 2.1)."""

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
    """An acyclic graph whose nodes fire block by block: normalise, rectify, convolve, send.

    A block's state is the sum of what all earlier blocks sent to it. The first block holds the
    graph's inputs. `inner_outputs` sets which nodes are the outputs:

    - None: the last block. It does not fire, and no edge leads to the first block. The edge matrix
      is [all nodes except the last block's, all nodes except the first block's].
    - n: the last n nodes, which are part of the last block. That block fires, too, and all its
      nodes send to the outputs, so an output can send to itself. The edge matrix is
      [all nodes, all nodes].

    Entries of the edge matrix that point backwards are never used, but count when edges are chosen:
    the published code defines the budget this way.

    Args:
      block_sizes: number of nodes of each block, inputs first.
      nodes: the nodes that fire.
      sparsity: the fraction of edges that are not real, in [0, 1].
      rule: chooses the real edges.
      inner_outputs: None, or at most the size of the last block.
      stride: of the first block's convolution.

    Raises:
      ValueError: `inner_outputs` exceeds the size of the last block.
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
        mask: Bool[Array, " batch"] | None = None,
        pixels: tuple[slice, slice] = EVERY_PIXEL,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the states of the output nodes at the rows and columns `pixels`.

        `mask` is ignored: padding does not influence the real examples of a batch. (In training it
        does, through batch statistics.)
        """
        del mask
        weights = self.edges.real_weights(train=train, key=key).astype(inputs.dtype)
        ends = [0, *itertools.accumulate(self.block_sizes)]
        blocks = [slice(start, end) for start, end in itertools.pairwise(ends)]
        first_column = ends[-1] - weights.shape[1]
        # We multiply once for each pair of blocks. A product for each source block would need
        # splitting; one growing state would be copied at each block.
        rectangles = [
            (source.start, source.stop, target.start - first_column, target.stop - first_column)
            for index, target in enumerate(blocks)
            for source in blocks[:index]
        ]
        if self.inner_outputs is not None:
            left = weights.shape[1] - self.inner_outputs
            rectangles.append((ends[-2], ends[-1], left, ends[-1]))
        edges = iter(_cut(tuple(rectangles), weights))
        state, fired = inputs, []
        for index, block in enumerate(blocks[:-1]):
            stride = self.stride if index == 0 else 1
            fired.append(self.nodes.fire(state, block, train=train, stride=stride))
            state = functools.reduce(jnp.add, [send(planes, next(edges)) for planes in fired])
        rows, columns = pixels
        if self.inner_outputs is None:
            return state[:, rows, columns]
        # Only the pixels that are read need the last product (4 of 64 in the tiny classifier).
        last = self.nodes.fire(state, blocks[-1], train=train)[:, rows, columns]
        return state[:, rows, columns, -self.inner_outputs :] + send(last, next(edges))


Rectangles = tuple[tuple[int, int, int, int], ...]  # top, bottom, left, right; they do not overlap
Matrix = Float[Array, "rows columns"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cut(rectangles: Rectangles, matrix: Matrix) -> list[Array]:
    """Returns rectangles of a matrix.

    The gradient is hand-written: it writes the cotangents into one matrix, whereas autodiff adds up
    one whole matrix for each rectangle. Autodiff takes 1.65 times as long
    (jax 0.10.2, `python -m experiments.benchmarks.gradients`).
    """
    return [matrix[top:bottom, left:right] for top, bottom, left, right in rectangles]


def _cut_forward(rectangles: Rectangles, matrix: Matrix) -> tuple[list[Array], Matrix]:
    return _cut(rectangles, matrix), jnp.zeros_like(matrix)


def _cut_backward(rectangles: Rectangles, zeros: Matrix, cotangents: list[Array]) -> tuple[Matrix]:
    matrix_cotangent = zeros
    for (top, _, left, _), cotangent in zip(rectangles, cotangents, strict=True):
        matrix_cotangent = lax.dynamic_update_slice(matrix_cotangent, cotangent, (top, left))
    return (matrix_cotangent,)


_cut.defvjp(_cut_forward, _cut_backward)


def edge_matrix_shape(block_sizes: Sequence[int], inner_outputs: int | None) -> tuple[int, int]:
    """Returns the number of sources and of targets of a blocked graph."""
    num_nodes = sum(block_sizes)
    if inner_outputs is not None:
        return num_nodes, num_nodes
    return num_nodes - block_sizes[-1], num_nodes - block_sizes[0]


def backward_edges(
    num_sources: int, num_targets: int, num_inputs: int, num_outputs: int
) -> Bool[Array, "sources targets"]:
    """Returns the edges that a random static graph may not draw, as in the published code.

    The published code counts in steps of `num_outputs` from the inputs on, whatever the sizes of
    the blocks are. Sources of step j, which start at `num_inputs + j * num_outputs`, may not reach
    targets below `(j + 1) * num_outputs`.
    """
    source = jnp.arange(num_sources)[:, None]
    target = jnp.arange(num_targets)[None, :]
    step = (source - num_inputs) // num_outputs
    return (source >= num_inputs) & (target < (step + 1) * num_outputs)
