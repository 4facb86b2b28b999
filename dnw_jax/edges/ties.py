"""The first of equal magnitudes in row-major order, and how many there are.

A cumulative sum over all would gather a sharded mask: instead the row is found in which the last
one lies, then its place in the row.
"""

import itertools
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def first_true(
    tied: list[Bool[Array, "..."]], count: Int[Array, ""], in_all: Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """The first `count` of the `in_all` true elements in row-major order, first array first."""
    undecided = -1

    def decided(ends: list[Array]) -> list[Array]:
        # Of what the loop carries, else it would all be taken out of the loop, and always done.
        here = [each & (end == undecided) for each, end in zip(tied, ends, strict=True)]
        totals = list(map(num_true, here))
        before = itertools.accumulate(totals[:-1], initial=jnp.int32(0))
        wanted = [jnp.clip(count - b, 0, total) for b, total in zip(before, totals, strict=True)]
        return list(map(_end_of_first, here, wanted))

    # As a rule all are wanted. A loop of one turn or none: mapped, a `lax.cond` would take it.
    ends = lax.while_loop(
        lambda ends: ends[0] == undecided,
        decided,
        [jnp.where(count == in_all, each.size, undecided) for each in tied],
    )
    return [each & (_flat_index(each.shape) < end) for each, end in zip(tied, ends, strict=True)]


def _end_of_first(mask: Bool[Array, "*shape"], count: Int[Array, ""]) -> Int[Array, ""]:
    """The flat index after the `count`-th true element, which there is; 0 if none is wanted."""
    if not mask.size:
        return jnp.int32(0)
    last = jnp.int32(0)
    left = count
    for axis, stride in enumerate(_strides(mask.shape)):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        inside = _true_along(mask, others)
        place, before = _place_of(left, inside)
        left -= before
        last += place * stride
        mask &= lax.broadcasted_iota(jnp.int32, mask.shape, axis) == place
    return jnp.where(count > 0, last + 1, 0)


def _place_of(nth: Int[Array, ""], numbers: Int[Array, " n"]) -> tuple[Array, Array]:
    """In which place the `nth` is, and how many come before that: no sharded array is gathered."""
    index = lax.iota(jnp.int32, len(numbers))

    def before(place: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.sum(numbers, where=index < place, dtype=jnp.int32)

    place = jnp.int32(0)
    for bit in reversed(range(len(numbers).bit_length())):
        further = place + (1 << bit)
        place = jnp.where(before(further) < nth, further, place)
    return place, before(place)


def _flat_index(shape: tuple[int, ...]) -> Int[Array, "*shape"]:
    """Row-major index of each element, without a reshape (which would move a sharded array)."""
    index = jnp.zeros(shape, jnp.int32)
    for axis, stride in enumerate(_strides(shape)):
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def num_true(mask: Bool[Array, "*shape"]) -> Int[Array, ""]:
    """How many are true."""
    return _true_along(mask, tuple(range(mask.ndim)))


def _true_along(mask: Bool[Array, "..."], axes: tuple[int, ...]) -> Int[Array, "..."]:
    """How many are true along `axes`: along one in 16 bits, which XLA:CPU vectorises."""
    short = [axis for axis in axes if mask.shape[axis] < 2**16]
    if not short:
        return jnp.sum(mask, axes, dtype=jnp.int32)
    longest = max(short, key=lambda axis: mask.shape[axis])
    part = jnp.sum(mask, longest, dtype=jnp.uint16, keepdims=True)
    return jnp.sum(part, axes, dtype=jnp.int32)
