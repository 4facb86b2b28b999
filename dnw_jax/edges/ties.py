"""Marks the first k True elements of masks in row-major order, and counts True elements.

`select` marks the magnitudes that are equal to its threshold, and keeps the first of them.

A cumulative sum over the flat mask would gather a sharded mask on one device. Instead the search
goes axis by axis: it finds the row that holds the last of the k elements, then the position in that
row, from counts along one axis at a time.
"""

import itertools
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

_UNKNOWN_END = -1


def first_true(
    tied: list[Bool[Array, "..."]], count: Int[Array, ""], num_tied: Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """Marks the first `count` True elements, array by array, each in row-major order.

    Args:
      tied: masks of any shapes.
      count: number of True elements to keep, in 0..num_tied.
      num_tied: number of True elements of all masks.
    """

    def find_ends(ends: list[Array]) -> list[Array]:
        # Depends on the loop carry. Otherwise XLA hoists this out of the loop and runs it even when
        # the loop body never executes.
        masks = [mask & (end == _UNKNOWN_END) for mask, end in zip(tied, ends, strict=True)]
        totals = list(map(num_true, masks))
        before = itertools.accumulate(totals[:-1], initial=jnp.int32(0))
        wanted = [jnp.clip(count - b, 0, total) for b, total in zip(before, totals, strict=True)]
        return list(map(_end_of_first, masks, wanted))

    # This loop is an `if`: it runs once if some ties are left out, and never otherwise. Under vmap
    # a `lax.cond` would run both branches.
    ends = lax.while_loop(
        lambda ends: ends[0] == _UNKNOWN_END,
        find_ends,
        [jnp.where(count == num_tied, mask.size, _UNKNOWN_END) for mask in tied],
    )
    return [mask & (_flat_index(mask.shape) < end) for mask, end in zip(tied, ends, strict=True)]


def _end_of_first(mask: Bool[Array, "*shape"], count: Int[Array, ""]) -> Int[Array, ""]:
    """Returns 1 + the flat index of the `count`-th True element; 0 if `count` is 0.

    The mask must hold at least `count` True elements.
    """
    if not mask.size:
        return jnp.int32(0)
    flat_index = jnp.int32(0)
    rank = count  # of the wanted element among the True elements that are left in `mask`
    for axis, stride in enumerate(_strides(mask.shape)):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        position, before = _find_bin(rank, _true_along(mask, others))
        rank -= before
        flat_index += position * stride
        mask &= lax.broadcasted_iota(jnp.int32, mask.shape, axis) == position
    return jnp.where(count > 0, flat_index + 1, 0)


def _find_bin(rank: Int[Array, ""], counts: Int[Array, " n"]) -> tuple[Array, Array]:
    """Returns the index of the bin that holds the `rank`-th item, and the items in earlier bins.

    A bisection on the index, by sums: a sharded array is not gathered.
    """
    index = lax.iota(jnp.int32, len(counts))

    def items_before(position: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.sum(counts, where=index < position, dtype=jnp.int32)

    position = jnp.int32(0)
    for bit in reversed(range(len(counts).bit_length())):
        further = position + (1 << bit)
        position = jnp.where(items_before(further) < rank, further, position)
    return position, items_before(position)


def _flat_index(shape: tuple[int, ...]) -> Int[Array, "*shape"]:
    """Returns the row-major index of each element; a reshape would move a sharded array."""
    index = jnp.zeros(shape, jnp.int32)
    for axis, stride in enumerate(_strides(shape)):
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def num_true(mask: Bool[Array, "*shape"]) -> Int[Array, ""]:
    """Returns the number of True elements."""
    return _true_along(mask, tuple(range(mask.ndim)))


def _true_along(mask: Bool[Array, "..."], axes: tuple[int, ...]) -> Int[Array, "..."]:
    """Counts the True elements along `axes`.

    The counts along one axis are summed in 16 bits, which XLA:CPU vectorises.
    """
    short = [axis for axis in axes if mask.shape[axis] < 2**16]
    if not short:
        return jnp.sum(mask, axes, dtype=jnp.int32)
    longest = max(short, key=lambda axis: mask.shape[axis])
    part = jnp.sum(mask, longest, dtype=jnp.uint16, keepdims=True)
    return jnp.sum(part, axes, dtype=jnp.int32)
