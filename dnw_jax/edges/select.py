"""Exactly the k edges of largest magnitude, found by counting instead of sorting.

The bit pattern of a non-negative float grows with its value, so what separates the k largest from
the rest is found by counting how many lie above a candidate: O(size) each, without moving the data.
Several candidates are counted in one pass over the weights: first the quantiles of a sample, then
where the k-th lies if the values in between are evenly spread, until exactly k lie above one, or
all that are left are equal. As a rule that takes two to seven passes; each halves what is left of
the bits, so that it never takes more than there are bits. Under jit with a sharded input a pass is
three all-reduces of a few numbers, and the sample is one: nothing else leaves its device.
"""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from dnw_jax.edges.ties import first_true
from dnw_jax.ops.barriers import barrier

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


class _Bracket(NamedTuple):
    """The k-th largest magnitude is >= `low` and < `high`; how many are >= each of these.

    At the start `high` is above all, at the end all in between are of one magnitude, or wanted.
    `passes` over the weights were needed so far.
    """

    low: Array
    count_low: Array
    high: Array
    count_high: Array
    passes: Array


@jax.jit  # without it a call outside of jit would compile its loops anew each time
def _masks(weights: list[Float[Array, "..."]], count: Int[Array, ""]) -> list[Bool[Array, "..."]]:
    if not any(each.size for each in weights):
        return [jnp.zeros(each.shape, bool) for each in weights]
    dtype = jnp.result_type(*weights)
    weights = [lax.stop_gradient(each).astype(dtype) for each in weights]
    # Of none, the search is for the largest: it needs one to look for.
    low, count_low, high, count_high, _ = narrowed_bracket(weights, jnp.maximum(count, 1))
    magnitudes = [magnitude_bits(each) for each in weights]
    tied = [(low <= magnitude) & (magnitude < high) for magnitude in magnitudes]
    ties = first_true(tied, count - count_high, in_all=count_low - count_high)
    return [(m >= high) | tie for m, tie in zip(magnitudes, ties, strict=True)]


def narrowed_bracket(weights: list[Array], count: Array) -> _Bracket:
    """That of the `count`-th (from 1), once nothing but ties is left to decide in it."""
    weights = [each for each in weights if each.size]
    size = jnp.int32(sum(each.size for each in weights))
    num_bits = _bits(weights[0])
    unsigned = _UNSIGNED[num_bits]
    top = unsigned(1 << (num_bits - 1))  # above every magnitude
    start = _Bracket(unsigned(0), size, top, jnp.int32(0), jnp.int32(0))

    def narrowed(bracket: _Bracket, candidates: Array) -> _Bracket:
        candidates = jnp.clip(candidates, bracket.low + 1, bracket.high - 1)
        # Else the magnitudes would be taken out of the loop, and written to memory.
        here, low, high, candidates = barrier((weights, bracket.low, bracket.high, candidates))
        seen = [_look(each, candidates, low, high) for each in here]
        counts, least, most = map(jnp.stack, zip(*seen, strict=True))
        found = jnp.sum(counts, 0)
        enough = found >= count
        # As close to the magnitudes that there are as can be: of ties alone nothing is undecided.
        return _Bracket(
            jnp.maximum(jnp.max(jnp.where(enough, candidates, low)), jnp.min(least)),
            jnp.min(jnp.where(enough, found, bracket.count_low)),
            jnp.minimum(jnp.min(jnp.where(enough, high, candidates)), jnp.max(most) + 1),
            jnp.max(jnp.where(enough, bracket.count_high, found)),
            bracket.passes + 1,
        )

    def undecided(bracket: _Bracket) -> Array:
        return (bracket.high - bracket.low > 1) & (bracket.count_low != count)

    def narrow(bracket: _Bracket) -> _Bracket:
        return narrowed(bracket, _guesses(bracket, count, weights[0].dtype))

    return lax.while_loop(undecided, narrow, narrowed(start, _quantiles(weights, count)))


def _look(
    weights: Float[Array, "*shape"],
    candidates: UInt[Array, " number"],
    low: UInt[Array, ""],
    high: UInt[Array, ""],
) -> tuple[Int[Array, " number"], UInt[Array, ""], UInt[Array, ""]]:
    """How many magnitudes are >= each candidate; the least and the most of those in the bracket."""
    magnitudes = magnitude_bits(weights)
    at_once = _look_by_sums if jax.device_count() > 1 else _look_in_one_pass
    return lax.platform_dependent(
        magnitudes, candidates, low, high, cpu=at_once, default=_look_by_sums
    )


def _look_by_sums(
    magnitudes: UInt[Array, "*shape"], candidates: Array, low: Array, high: Array
) -> tuple[Array, Array, Array]:
    """Counts as one sum: two kernels of a GPU; of magnitudes spread over devices one all-reduce."""
    each = candidates.reshape(-1, *[1] * magnitudes.ndim)
    found = jnp.sum(magnitudes >= each, range(1, each.ndim), dtype=jnp.int32)
    from_low, below_high = _inside(magnitudes, low, high)
    return found, jnp.min(from_low), jnp.max(below_high)


def _inside(magnitudes: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Those >= `low`, the others above all; those < `high`, the others zero."""
    above = magnitudes.dtype.type(jnp.iinfo(magnitudes.dtype).max)
    from_low = jnp.where(magnitudes >= low, magnitudes, above)
    return from_low, jnp.where(magnitudes < high, magnitudes, magnitudes.dtype.type(0))


def _look_in_one_pass(
    magnitudes: UInt[Array, "*shape"], candidates: Array, low: Array, high: Array
) -> tuple[Array, Array, Array]:
    """In a form that XLA:CPU vectorises; what is sharded along the last axis would be gathered."""
    counted = [(magnitudes >= each).astype(jnp.int32) for each in candidates]
    operands = (*counted, *_inside(magnitudes, low, high))
    unsigned = magnitudes.dtype.type
    nothing = (*[jnp.int32(0)] * len(counted), unsigned(jnp.iinfo(unsigned).max), unsigned(0))
    axes = tuple(range(magnitudes.ndim))
    if magnitudes.shape[-1:] >= (_LONG_ROW,):  # then the cores share the rows
        axes = axes[-1:]
    *rows, least, most = lax.reduce(operands, nothing, _joined, axes)
    found = jnp.stack([jnp.sum(row, dtype=jnp.int32) for row in rows])
    return found, jnp.min(least), jnp.max(most)


def _joined(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
    *counts, least, most = zip(a, b, strict=True)
    return (*(x + y for x, y in counts), jnp.minimum(*least), jnp.maximum(*most))


def _quantiles(weights: list[Array], count: Array) -> Array:
    """Where the k-th may lie, by a sample: some places around, and just above the middle one."""
    size = sum(each.size for each in weights)
    samples = [_sample(each, math.ceil(_SAMPLE_SIZE * each.size / size)) for each in weights]
    ordered = jnp.sort(magnitude_bits(jnp.concatenate(samples)))[::-1]
    part = count.astype(jnp.float32) / size
    deviation = jnp.sqrt(part * (1 - part) / len(ordered))
    parts = part + jnp.array(_AROUND, jnp.float32) * deviation
    places = jnp.clip(jnp.ceil(parts * len(ordered)).astype(jnp.int32) - 1, 0, len(ordered) - 1)
    found = ordered[places]
    return jnp.append(found, found[len(_AROUND) // 2] + 1)


def _sample(weights: Float[Array, "*shape"], number: int) -> Float[Array, " number"]:
    """Evenly spread ones. By indices: a slice would move whole shards to their neighbours."""
    golden = (5**0.5 - 1) / 2
    places = (np.arange(number) * golden % 1 * weights.size).astype(np.int64)
    return jnp.atleast_1d(weights)[np.unravel_index(places, weights.shape or (1,))]


def _guesses(bracket: _Bracket, count: Array, dtype: jnp.dtype) -> Array:
    """Around where the k-th lies if the values in between are evenly spread; and midway in bits."""
    low, count_low, high, count_high, _ = bracket
    inside = (count_low - count_high).astype(jnp.float32)
    part = (count_low - count).astype(jnp.float32) / inside
    deviation = jnp.sqrt(part * (1 - part) / inside)
    parts = jnp.clip(part + jnp.array(_BETWEEN, jnp.float32) * deviation, 0, 1)
    least, most = (lax.bitcast_convert_type(bits, dtype) for bits in (low, high - 1))
    values = least + (most - least) * parts.astype(dtype)
    middle = low + (high - low) // 2
    between = jnp.where(jnp.isfinite(values), magnitude_bits(values), middle)
    return jnp.append(between, middle)


def magnitude_bits(weights: Float[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """Unsigned integers in the order of |weights|, NaN largest: the bits without the sign."""
    unsigned = _UNSIGNED[_bits(weights)]
    bits = lax.bitcast_convert_type(weights, unsigned)
    return bits & unsigned(jnp.iinfo(unsigned).max >> 1)
