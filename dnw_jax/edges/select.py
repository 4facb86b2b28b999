"""Exactly the k edges of largest magnitude, found by counting instead of sorting.

The bit pattern of a non-negative float grows with its value, so what separates the k largest from
the rest is found by counting how many lie above a candidate: O(size) each, without moving the data.
Several candidates are counted in one pass over the weights: first the quantiles of a sample, then
where the k-th lies if the values in between are evenly spread, until exactly k lie above one. As a
rule that takes three to six passes; borders of four parts of the bits are counted, too, so that it
never takes more than some eighteen. Under jit with a sharded input each count is an all-reduce, and
so is the sample: nothing else leaves its device.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from dnw_jax.fences import barrier

_UNSIGNED = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def edge_mask(
    weights: Float[Array, "*shape"], num_edges: Int[Array, ""] | int
) -> Bool[Array, "*shape"]:
    """Marks the `num_edges` weights of largest magnitude: E_k of the paper's section 2.

    Exact for every size and any float type. Equal magnitudes: the lowest flat (row-major) index
    first. NaN ranks above infinity. No gradient flows through the choice.

    Args:
      weights: any shape of fewer than 2**31 elements.
      num_edges: a Python int in 0..size, else ValueError; a traced integer is clipped into it.

    Raises:
      ValueError: `num_edges` outside 0..size.
      TypeError: `weights` are not floats of 16, 32 or 64 bits, or `num_edges` is no integer.
    """
    (mask,) = edge_masks([weights], num_edges)
    return mask


def edge_masks(
    weights: Sequence[Float[Array, "..."]], num_edges: Int[Array, ""] | int
) -> list[Bool[Array, "..."]]:
    """Marks the `num_edges` weights of largest magnitude over several arrays: one threshold.

    Otherwise as `edge_mask`; of equal magnitudes those of the first array come first.
    """
    for each in weights:
        if not jnp.issubdtype(each.dtype, jnp.floating) or _bits(each) not in _UNSIGNED:
            raise TypeError(f"weights are {each.dtype}; they must be floats of 16, 32 or 64 bits")
    size = sum(each.size for each in weights)
    return _masks(list(weights), _checked_count(num_edges, size))


def _checked_count(num_edges: Int[Array, ""] | int, size: int) -> Int[Array, ""]:
    if isinstance(num_edges, jax.core.Tracer):
        if not jnp.issubdtype(num_edges.dtype, jnp.integer):
            raise TypeError(f"num_edges has dtype {num_edges.dtype}; an integer is needed")
        most = min(size, jnp.iinfo(num_edges.dtype).max)  # a size that int8 cannot hold would wrap
        return jnp.clip(num_edges, 0, most).astype(jnp.int32)
    try:
        count = operator.index(num_edges)
    except TypeError:
        raise TypeError(f"num_edges is {num_edges!r}; an integer is needed") from None
    if not 0 <= count <= size:
        raise ValueError(f"num_edges is {count}; with {size} weights it must be in 0..{size}")
    return jnp.int32(count)


def _bits(weights: Float[Array, "*shape"]) -> int:
    return jnp.finfo(weights.dtype).bits


_SAMPLE_SIZE = 1024  # of all arrays together
_LONG_ROW = 64
# Standard deviations from where the sample has the k-th.
_AROUND = (-3.0, -1.0, 0.0, 1.0, 3.0)
# From where interpolation has it: between them it lies with equal probability.
_BETWEEN = (-0.967, -0.431, 0.0, 0.431, 0.967)
_PARTS = 4  # of the bits in between, whose borders are candidates, too: so the passes are bounded


class _Bracket(NamedTuple):
    """The k-th largest magnitude is >= `low` and < `high`; how many are >= each of these.

    At the start `high` is above all, at the end all in between are of one magnitude, or wanted.
    """

    low: Array
    count_low: Array
    high: Array
    count_high: Array


@jax.jit  # without it a call outside of jit would compile its loops anew each time
def _masks(weights: list[Float[Array, "..."]], count: Int[Array, ""]) -> list[Bool[Array, "..."]]:
    if not any(each.size for each in weights):
        return [jnp.zeros(each.shape, bool) for each in weights]
    dtype = jnp.result_type(*weights)
    weights = [lax.stop_gradient(each).astype(dtype) for each in weights]
    low, count_low, high, count_high = _narrowed(weights, count)
    magnitudes = [magnitude_bits(each) for each in weights]
    tied = [(low <= magnitude) & (magnitude < high) for magnitude in magnitudes]
    ties = _first(tied, count - count_high, in_all=count_low - count_high)
    return [(m >= high) | tie for m, tie in zip(magnitudes, ties, strict=True)]


def _narrowed(weights: list[Array], count: Array) -> _Bracket:
    """The bracket, once nothing but ties is left to decide in it."""
    size = jnp.int32(sum(each.size for each in weights))
    num_bits = _bits(weights[0])
    unsigned = _UNSIGNED[num_bits]
    top = unsigned(1 << (num_bits - 1))  # above every magnitude
    start = _Bracket(unsigned(0), size, top, jnp.int32(0))

    def narrowed(bracket: _Bracket, candidates: Array) -> _Bracket:
        candidates = jnp.clip(candidates, bracket.low + 1, bracket.high - 1)
        # Else the magnitudes would be taken out of the loop, and written to memory.
        here, candidates = barrier((weights, candidates))
        found = jnp.sum(jnp.stack([_counts_from(each, candidates) for each in here]), 0)
        enough = found >= count
        low, count_low, high, count_high = bracket
        return _Bracket(
            jnp.max(jnp.where(enough, candidates, low)),
            jnp.min(jnp.where(enough, found, count_low)),
            jnp.min(jnp.where(enough, high, candidates)),
            jnp.max(jnp.where(enough, count_high, found)),
        )

    def undecided(bracket: _Bracket) -> Array:
        return (bracket.high - bracket.low > 1) & (bracket.count_low != count)

    def narrow(bracket: _Bracket) -> _Bracket:
        return narrowed(bracket, _guesses(bracket, count, weights[0].dtype))

    return lax.while_loop(undecided, narrow, narrowed(start, _quantiles(weights, count)))


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


def _counts_from(
    weights: Float[Array, "*shape"], candidates: UInt[Array, " number"]
) -> Int[Array, " number"]:
    """How many magnitudes are >= each candidate."""
    in_one_pass = _counts if jax.device_count() > 1 else _counts_in_one_pass
    return lax.platform_dependent(
        magnitude_bits(weights), candidates, cpu=in_one_pass, default=_counts
    )


def _counts(
    magnitudes: UInt[Array, "*shape"], candidates: UInt[Array, " number"]
) -> Int[Array, " number"]:
    """As one sum: two kernels of a GPU; of magnitudes spread over devices one all-reduce."""
    each = candidates.reshape(-1, *[1] * magnitudes.ndim)
    return jnp.sum(magnitudes >= each, range(1, each.ndim), dtype=jnp.int32)


def _counts_in_one_pass(
    magnitudes: UInt[Array, "*shape"], candidates: UInt[Array, " number"]
) -> Int[Array, " number"]:
    """In a form that XLA:CPU vectorises; what is sharded along the last axis would be gathered."""
    operands = tuple((magnitudes >= each).astype(jnp.int32) for each in candidates)
    zeros = (jnp.int32(0),) * len(operands)
    axes = tuple(range(magnitudes.ndim))
    if magnitudes.shape[-1:] >= (_LONG_ROW,):  # then the cores share the rows
        axes = axes[-1:]
    rows = lax.reduce(operands, zeros, lambda a, b: tuple(map(operator.add, a, b)), axes)
    return jnp.stack([jnp.sum(row, dtype=jnp.int32) for row in rows])


def _quantiles(weights: list[Array], count: Array) -> Array:
    """Where the k-th may lie, by a sample: some places around, and the one above the middle."""
    size = sum(each.size for each in weights)
    samples = [_sample(each, math.ceil(_SAMPLE_SIZE * each.size / size)) for each in weights]
    ordered = jnp.sort(magnitude_bits(jnp.concatenate(samples)))[::-1]
    part = count.astype(jnp.float32) / size
    deviation = jnp.sqrt(part * (1 - part) / len(ordered))
    parts = part + jnp.array(_AROUND, jnp.float32) * deviation
    places = jnp.clip(jnp.ceil(parts * len(ordered)).astype(jnp.int32) - 1, 0, len(ordered) - 1)
    found = ordered[places]
    # If few are wanted, the sample may hold none of them.
    twice = magnitude_bits(2 * lax.bitcast_convert_type(ordered[0], weights[0].dtype))
    return jnp.append(found, jnp.stack([found[len(_AROUND) // 2] + 1, twice]))


def _sample(weights: Float[Array, "*shape"], number: int) -> Float[Array, " number"]:
    """Evenly spread ones. By indices: a slice would move whole shards to their neighbours."""
    golden = (5**0.5 - 1) / 2
    places = (np.arange(number) * golden % 1 * weights.size).astype(np.int64)
    return jnp.atleast_1d(weights)[np.unravel_index(places, weights.shape or (1,))]


def _guesses(bracket: _Bracket, count: Array, dtype: jnp.dtype) -> Array:
    """Around where the k-th lies if the values in between are evenly spread; and evenly in bits."""
    low, count_low, high, count_high = bracket
    inside = (count_low - count_high).astype(jnp.float32)
    part = (count_low - count).astype(jnp.float32) / inside
    deviation = jnp.sqrt(part * (1 - part) / inside)
    parts = jnp.clip(part + jnp.array(_BETWEEN, jnp.float32) * deviation, 0, 1)
    least, most = (lax.bitcast_convert_type(bits, dtype) for bits in (low, high - 1))
    values = least + (most - least) * parts.astype(dtype)
    borders = low + (high - low) // _PARTS * jnp.arange(1, _PARTS, dtype=low.dtype)
    middle = low + (high - low) // 2
    between = jnp.where(jnp.isfinite(values), magnitude_bits(values), middle)
    return jnp.append(between, borders)


def magnitude_bits(weights: Float[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """Unsigned integers in the order of |weights|, NaN largest: the bits without the sign."""
    unsigned = _UNSIGNED[_bits(weights)]
    bits = lax.bitcast_convert_type(weights, unsigned)
    return bits & unsigned(jnp.iinfo(unsigned).max >> 1)


def _first(
    tied: list[Bool[Array, "..."]], count: Int[Array, ""], in_all: Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """The first `count` of the `in_all` true elements in row-major order, first array first.

    A cumulative sum over all would gather a sharded mask: instead the row is found in which the
    last one lies, then its place in the row.
    """
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
