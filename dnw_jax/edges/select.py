"""Exactly the k edges of largest magnitude, found by counting instead of sorting.

The bit pattern of a non-negative float grows with its value, so what separates the k largest from
the rest is found by counting how many lie above a candidate: O(size) each, without moving the data.
Under jit with a sharded input a count is an all-reduce; no weights are gathered. Small arrays are
bisected, bit by bit. Large ones begin at the quantiles of a sample and go on by interpolation, just
below and just above the place in turn, until exactly k lie above a candidate: some ten passes.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

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


# Below so many weights a pass costs less than thinking about it.
_LARGE = 2**15
_SAMPLE_SIDE = 64  # of the sample: so many along each of two axes
_SPREAD = 1.5  # standard deviations from the interpolated place to a candidate beside it


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
    magnitudes = [magnitude_bits(lax.stop_gradient(each).astype(dtype)) for each in weights]
    size = sum(each.size for each in weights)
    if dtype == jnp.float32 and size > _LARGE:
        low, count_low, high, count_high = _narrowed(magnitudes, count)
    else:
        low = _kth_largest(magnitudes, count)
        high = low + 1
        count_low, count_high = _count(magnitudes, low), _count(magnitudes, high)
    tied = [(low <= magnitude) & (magnitude < high) for magnitude in magnitudes]
    ties = _first(tied, count - count_high, in_all=count_low - count_high)
    return [(m >= high) | tie for m, tie in zip(magnitudes, ties, strict=True)]


def _count(magnitudes: list[Array], candidate: Array) -> Array:
    return sum((num_true(magnitude >= candidate) for magnitude in magnitudes), jnp.int32(0))


def num_true(mask: Bool[Array, "..."]) -> Int[Array, ""]:
    """How many are true: along one axis in 16 bits, which XLA:CPU vectorises (8 times faster)."""
    short = [axis for axis, length in enumerate(mask.shape) if length < 2**16]
    if not short:
        return jnp.sum(mask, dtype=jnp.int32)
    longest = max(short, key=lambda axis: mask.shape[axis])
    return jnp.sum(jnp.sum(mask, longest, dtype=jnp.uint16), dtype=jnp.int32)


def _kth_largest(magnitudes: list[Array], count: Array) -> Array:
    """By bisection on the bits; 0 where fewer than `count` are there."""
    zero = jnp.zeros((), magnitudes[0].dtype)
    num_bits = jnp.iinfo(zero.dtype).bits - 1
    return _largest(lambda candidate: _count(magnitudes, candidate) >= count, zero, num_bits)


def _narrowed(magnitudes: list[Array], count: Array) -> _Bracket:
    """The bracket, once nothing but ties is left to decide in it."""
    size = jnp.int32(sum(each.size for each in magnitudes))
    top = jnp.uint32(1 << 31)  # above every magnitude
    start = _Bracket(jnp.uint32(0), size, top, jnp.int32(0))
    start = start._replace(low=jnp.where(count == 0, top - 1, 0))
    samples = [_sample(each) for each in magnitudes]
    share = count / size
    num = sum(each.size for each in samples)
    spread = 3 * jnp.sqrt(num * share * (1 - share)) + 1
    below, above = (
        _kth_largest(samples, jnp.clip(num * share + far, 1, num).astype(jnp.int32))
        for far in (spread, -spread)
    )

    def undecided(turn: tuple[_Bracket, Array]) -> Array:
        bracket, _ = turn
        return (bracket.high - bracket.low > 1) & (bracket.count_low != count)

    def narrow(turn: tuple[_Bracket, Array]) -> tuple[_Bracket, Array]:
        bracket, number = turn
        guess = jnp.where(number == 0, below, jnp.where(number == 1, above, _guess(*turn, count)))
        candidate = jnp.clip(guess, bracket.low + 1, bracket.high - 1)
        found = _count(magnitudes, candidate)
        enough = found >= count
        return _Bracket(
            jnp.where(enough, candidate, bracket.low),
            jnp.where(enough, found, bracket.count_low),
            jnp.where(enough, bracket.high, candidate),
            jnp.where(enough, bracket.count_high, found),
        ), number + 1

    bracket, _ = lax.while_loop(undecided, narrow, (start, jnp.int32(0)))
    return bracket


def _sample(magnitude: Array) -> Array:
    """A few thousand of them, evenly spread: every 2**n-th along each axis.

    So that sharded axes, which are multiples of such a power, are sampled where they lie.
    """
    side = round((_SAMPLE_SIDE**2) ** (1 / max(sum(n > 1 for n in magnitude.shape), 1)))
    strides = [2 ** max(0, (n // side).bit_length() - 1) for n in magnitude.shape]
    return lax.slice(magnitude, (0,) * magnitude.ndim, magnitude.shape, strides)


def _guess(bracket: _Bracket, number: Array, count: Array) -> Array:
    """Just below, then just above where the k-th lies if the values in between are evenly spread.

    Where few are left, and in every other two turns: that place itself, then the middle of the
    bits, which bounds the number of turns.
    """
    middle = bracket.low + (bracket.high - bracket.low) // 2
    inside = (bracket.count_low - bracket.count_high).astype(jnp.float32)
    part = (bracket.count_low - count).astype(jnp.float32) / inside
    spread = _SPREAD * jnp.sqrt(part * (1 - part) / inside) + 0.5 / inside
    few = spread >= jnp.minimum(part, 1 - part)
    odd, plain = number % 2 == 1, few | (number % 4 >= 2)
    part += jnp.where(plain, 0, jnp.where(odd, spread, -spread))
    low, high = (
        lax.bitcast_convert_type(each, jnp.float32) for each in (bracket.low, bracket.high)
    )
    value = low + (high - low) * part
    between = lax.bitcast_convert_type(value, jnp.uint32)
    return jnp.where((plain & odd) | ~jnp.isfinite(value), middle, between)


def magnitude_bits(weights: Float[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """Unsigned integers in the order of |weights|, NaN largest: the bits without the sign."""
    unsigned = _UNSIGNED[_bits(weights)]
    bits = lax.bitcast_convert_type(weights, unsigned)
    return bits & unsigned(jnp.iinfo(unsigned).max >> 1)


def _largest(
    holds: Callable[[Array], Array], zero: UInt[Array, ""], num_bits: int
) -> UInt[Array, ""]:
    """The largest integer of `num_bits` bits for which `holds`, true up to some point, is true."""
    one = jnp.ones_like(zero)

    def try_bit(i: Array, found: Array) -> Array:
        candidate = found | (one << (num_bits - 1 - i).astype(zero.dtype))
        return jnp.where(holds(candidate), candidate, found)

    return lax.fori_loop(0, num_bits, try_bit, zero)


_Bounds = tuple[Array, Array, Array, Array, Array]


def _first(
    tied: list[Bool[Array, "..."]], count: Int[Array, ""], in_all: Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """The first `count` of the `in_all` true elements in row-major order.

    Searches for the flat index, because a cumulative sum would gather a sharded mask: as if they
    were spread evenly, and by bisection in every other turn.
    """
    starts = itertools.accumulate((each.size for each in tied[:-1]), initial=0)
    indices = [start + _flat_index(each.shape) for start, each in zip(starts, tied, strict=True)]

    def before(end: Array) -> list[Array]:
        return [each & (index < end) for each, index in zip(tied, indices, strict=True)]

    def total(masks: list[Array]) -> Array:
        return sum(map(num_true, masks), jnp.int32(0))

    def search(bounds: _Bounds) -> _Bounds:
        # Of `below` elements before `low` too few are wanted, of `until` before `high` enough.
        low, below, high, until, number = bounds
        part = (count - below) / jnp.maximum(until - below, 1)
        guess = jnp.where(number % 2 == 0, part, 0.5)
        middle = low + ((high - low).astype(jnp.float32) * guess).astype(jnp.int32)
        middle = jnp.clip(middle, low + 1, high - 1)
        found = total(before(middle))
        enough = found >= count
        return (
            jnp.where(enough, low, middle),
            jnp.where(enough, below, found),
            jnp.where(enough, middle, high),
            jnp.where(enough, found, until),
            number + 1,
        )

    # If all are wanted, the end of the array is right, and the loop takes no turn.
    size = jnp.int32(sum(each.size for each in tied))
    zero = jnp.int32(0)
    _, _, end, _, _ = lax.while_loop(
        lambda bounds: (bounds[2] - bounds[0] > 1) & (bounds[3] != count),
        search,
        (zero, zero, size, in_all, zero),
    )
    return before(jnp.where(count > 0, end, 0))


def _flat_index(shape: tuple[int, ...]) -> Int[Array, "*shape"]:
    """Row-major index of each element, without a reshape (which would move a sharded array)."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    index = jnp.zeros(shape, jnp.int32)
    for axis, stride in enumerate(strides):
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index
