"""Marks exactly the k edges of largest magnitude; counts instead of sorting.

The bit pattern of a non-negative float grows with its value. So the threshold between the k largest
magnitudes and the others can be found by counting how many magnitudes lie above a candidate. A
count is O(size) and moves no data.

A bracket is a pair of bit patterns around the k-th magnitude. One pass over the weights counts
several candidates at once and narrows the bracket. The candidates of the first pass are quantiles
of a sample. Later passes interpolate in the bracket, as if its magnitudes were evenly spread. The
search ends when exactly k magnitudes lie above a candidate, or when all magnitudes in the bracket
are equal (`ties` then chooses among them). It usually takes two to seven passes
(`python -m experiments.benchmarks.selection_passes`). Every pass after the first at least halves
the bracket, so the number of passes never exceeds the number of bits.

Under jit with sharded weights a pass is three all-reduces of a few numbers, and the sample is one
more. Nothing else leaves its device.
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
    """Marks the `num_edges` weights of largest magnitude, E_k in section 2 of the paper.

    The choice is exact. Of equal magnitudes the one with the lowest flat (row-major) index comes
    first; NaN ranks above infinity. No gradient flows through the choice.

    Args:
      weights: any shape of fewer than 2**31 elements; floats of 16, 32 or 64 bits.
      num_edges: a Python int in 0..size, or a traced integer, which is clipped into that range.

    Returns:
      A bool array of the shape of `weights` with exactly `num_edges` True elements.

    Raises:
      ValueError: `num_edges` is a Python int outside 0..size.
      TypeError: `weights` have another dtype, or `num_edges` is no integer.
    """
    (mask,) = edge_masks([weights], num_edges)
    return mask


def edge_masks(
    weights: Sequence[Float[Array, "..."]], num_edges: Int[Array, ""] | int
) -> list[Bool[Array, "..."]]:
    """Marks the `num_edges` weights of largest magnitude of several arrays, by one threshold.

    Args, order and errors are those of `edge_mask`; of equal magnitudes in different arrays those
    of the earlier array come first.
    """
    for array in weights:
        if not jnp.issubdtype(array.dtype, jnp.floating) or _bits(array) not in _UNSIGNED:
            raise TypeError(f"weights are {array.dtype}; they must be floats of 16, 32 or 64 bits")
    size = sum(array.size for array in weights)
    return _masks(list(weights), _checked_count(num_edges, size))


def _checked_count(num_edges: Int[Array, ""] | int, size: int) -> Int[Array, ""]:
    if isinstance(num_edges, jax.core.Tracer):
        if not jnp.issubdtype(num_edges.dtype, jnp.integer):
            raise TypeError(f"num_edges has dtype {num_edges.dtype}; an integer is needed")
        largest = min(size, jnp.iinfo(num_edges.dtype).max)  # a larger size would wrap in int8
        return jnp.clip(num_edges, 0, largest).astype(jnp.int32)
    try:
        count = operator.index(num_edges)
    except TypeError:
        raise TypeError(f"num_edges is {num_edges!r}; an integer is needed") from None
    if not 0 <= count <= size:
        raise ValueError(f"num_edges is {count}; with {size} weights it must be in 0..{size}")
    return jnp.int32(count)


def _bits(weights: Float[Array, "*shape"]) -> int:
    return jnp.finfo(weights.dtype).bits


_SAMPLE_SIZE = 1024  # elements, of all arrays together
_LONG_ROW = 64  # elements
# Candidates of the first pass: standard deviations from the sample's estimate of the threshold.
_SAMPLE_DEVIATIONS = (-3.0, -1.0, 0.0, 1.0, 3.0)
# Candidates of later passes: standard deviations from the interpolated threshold. These five values
# cut a normal distribution into six parts of equal probability.
_INTERPOLATION_DEVIATIONS = (-0.967, -0.431, 0.0, 0.431, 0.967)


class _Bracket(NamedTuple):
    """Two bit patterns between which the k-th largest magnitude lies: `low` <= k-th < `high`.

    Attributes:
      low: lower end.
      count_low: number of magnitudes >= `low`.
      high: upper end; at first above every magnitude.
      count_high: number of magnitudes >= `high`.
      passes: number of passes over the weights so far.
    """

    low: Array
    count_low: Array
    high: Array
    count_high: Array
    passes: Array


@jax.jit  # without it every call outside of jit would compile the loops again
def _masks(weights: list[Float[Array, "..."]], count: Int[Array, ""]) -> list[Bool[Array, "..."]]:
    if not any(array.size for array in weights):
        return [jnp.zeros(array.shape, bool) for array in weights]
    dtype = jnp.result_type(*weights)
    weights = [lax.stop_gradient(array).astype(dtype) for array in weights]
    # The search needs a rank of at least 1, so with a count of 0 it looks for the largest.
    low, count_low, high, count_high, _ = find_bracket(weights, jnp.maximum(count, 1))
    magnitudes = [magnitude_bits(array) for array in weights]
    tied = [(low <= magnitude) & (magnitude < high) for magnitude in magnitudes]
    ties = first_true(tied, count - count_high, num_tied=count_low - count_high)
    return [(m >= high) | tie for m, tie in zip(magnitudes, ties, strict=True)]


def find_bracket(weights: list[Array], count: Array) -> _Bracket:
    """Narrows the bracket until it fixes which magnitudes are the `count` largest, and returns it.

    When it returns, exactly `count` magnitudes are >= `low`, or all magnitudes still inside the
    bracket are equal.
    """
    weights = [array for array in weights if array.size]
    size = jnp.int32(sum(array.size for array in weights))
    num_bits = _bits(weights[0])
    unsigned = _UNSIGNED[num_bits]
    above_all = unsigned(1 << (num_bits - 1))
    start = _Bracket(unsigned(0), size, above_all, jnp.int32(0), jnp.int32(0))

    def narrow(bracket: _Bracket, candidates: Array) -> _Bracket:
        candidates = jnp.clip(candidates, bracket.low + 1, bracket.high - 1)
        # Without the barrier XLA computes all magnitudes before the loop and writes them to memory.
        arrays, low, high, candidates = barrier((weights, bracket.low, bracket.high, candidates))
        results = [_scan(array, candidates, low, high) for array in arrays]
        counts_by_array, least, most = map(jnp.stack, zip(*results, strict=True))
        counts = jnp.sum(counts_by_array, 0)
        enough = counts >= count
        # `low` rises at least to the least magnitude inside; `high` falls at least to one above the
        # largest. So if all magnitudes inside are equal, high - low becomes 1 and the search ends.
        return _Bracket(
            jnp.maximum(jnp.max(jnp.where(enough, candidates, low)), jnp.min(least)),
            jnp.min(jnp.where(enough, counts, bracket.count_low)),
            jnp.minimum(jnp.min(jnp.where(enough, high, candidates)), jnp.max(most) + 1),
            jnp.max(jnp.where(enough, bracket.count_high, counts)),
            bracket.passes + 1,
        )

    def undecided(bracket: _Bracket) -> Array:
        return (bracket.high - bracket.low > 1) & (bracket.count_low != count)

    def interpolate(bracket: _Bracket) -> _Bracket:
        return narrow(bracket, _interpolated(bracket, count, weights[0].dtype))

    return lax.while_loop(undecided, interpolate, narrow(start, _quantiles(weights, count)))


def _scan(
    weights: Float[Array, "*shape"],
    candidates: UInt[Array, " number"],
    low: UInt[Array, ""],
    high: UInt[Array, ""],
) -> tuple[Int[Array, " number"], UInt[Array, ""], UInt[Array, ""]]:
    """Passes once over the weights.

    Returns:
      The number of magnitudes >= each candidate, the least magnitude >= `low`, and the largest
      magnitude < `high`.
    """
    magnitudes = magnitude_bits(weights)
    # The mesh in the type is that of the devices that the program is for, wherever it is compiled.
    is_shared = jax.typeof(magnitudes).sharding.mesh.size > 1
    scan_on_cpu = _scan_by_sums if is_shared else _scan_by_one_reduction
    return lax.platform_dependent(
        magnitudes, candidates, low, high, cpu=scan_on_cpu, default=_scan_by_sums
    )


def _scan_by_sums(
    magnitudes: UInt[Array, "*shape"], candidates: Array, low: Array, high: Array
) -> tuple[Array, Array, Array]:
    """Counts in one sum: two kernels on a GPU, one all-reduce if devices share the magnitudes."""
    thresholds = candidates.reshape(-1, *[1] * magnitudes.ndim)
    counts = jnp.sum(magnitudes >= thresholds, range(1, thresholds.ndim), dtype=jnp.int32)
    from_low, below_high = _clipped(magnitudes, low, high)
    return counts, jnp.min(from_low), jnp.max(below_high)


def _clipped(magnitudes: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Replaces magnitudes below `low` by the largest integer, and those from `high` on by zero."""
    largest = magnitudes.dtype.type(jnp.iinfo(magnitudes.dtype).max)
    from_low = jnp.where(magnitudes >= low, magnitudes, largest)
    return from_low, jnp.where(magnitudes < high, magnitudes, magnitudes.dtype.type(0))


def _scan_by_one_reduction(
    magnitudes: UInt[Array, "*shape"], candidates: Array, low: Array, high: Array
) -> tuple[Array, Array, Array]:
    """Counts in a form that XLA:CPU vectorises.

    For arrays without a mesh, or with a mesh of a single device: XLA would gather magnitudes that
    are sharded along the last axis.
    """
    is_above = [(magnitudes >= candidate).astype(jnp.int32) for candidate in candidates]
    operands = (*is_above, *_clipped(magnitudes, low, high))
    unsigned = magnitudes.dtype.type
    initial = (*[jnp.int32(0)] * len(is_above), unsigned(jnp.iinfo(unsigned).max), unsigned(0))
    axes = tuple(range(magnitudes.ndim))
    if magnitudes.shape[-1:] >= (_LONG_ROW,):  # reduce each row, so that the cores share the rows
        axes = axes[-1:]
    *row_counts, least, most = lax.reduce(operands, initial, _combine, axes)
    counts = jnp.stack([jnp.sum(rows, dtype=jnp.int32) for rows in row_counts])
    return counts, jnp.min(least), jnp.max(most)


def _combine(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
    *counts, least, most = zip(a, b, strict=True)
    return (*(x + y for x, y in counts), jnp.minimum(*least), jnp.maximum(*most))


def _quantiles(weights: list[Array], count: Array) -> Array:
    """Returns the candidates of the first pass: quantiles of a sample near the `count`-th.

    One more candidate lies just above the middle quantile, because many magnitudes may be equal to
    this quantile. If the `count`-th is one of them, the bracket then holds nothing else, and the
    search ends after this pass.
    """
    size = sum(array.size for array in weights)
    samples = [_sample(array, math.ceil(_SAMPLE_SIZE * array.size / size)) for array in weights]
    ordered = jnp.sort(magnitude_bits(jnp.concatenate(samples)))[::-1]
    fraction = count.astype(jnp.float32) / size
    deviation = jnp.sqrt(fraction * (1 - fraction) / len(ordered))
    fractions = fraction + jnp.array(_SAMPLE_DEVIATIONS, jnp.float32) * deviation
    ranks = jnp.clip(jnp.ceil(fractions * len(ordered)).astype(jnp.int32) - 1, 0, len(ordered) - 1)
    quantiles = ordered[ranks]
    return jnp.append(quantiles, quantiles[len(_SAMPLE_DEVIATIONS) // 2] + 1)


def _sample(weights: Float[Array, "*shape"], number: int) -> Float[Array, " number"]:
    """Returns `number` evenly spread elements.

    It reads them by index: a strided slice would move whole shards between devices.
    """
    golden = (5**0.5 - 1) / 2
    flat_indices = (np.arange(number) * golden % 1 * weights.size).astype(np.int64)
    return jnp.atleast_1d(weights)[np.unravel_index(flat_indices, weights.shape or (1,))]


def _interpolated(bracket: _Bracket, count: Array, dtype: jnp.dtype) -> Array:
    """Returns the candidates of a later pass: values near the interpolated `count`-th magnitude.

    The interpolation assumes that the magnitudes in the bracket are evenly spread. One more
    candidate is the middle of the bracket's bit patterns, which halves the bracket in any case.
    """
    low, count_low, high, count_high, _ = bracket
    inside = (count_low - count_high).astype(jnp.float32)
    fraction = (count_low - count).astype(jnp.float32) / inside
    deviation = jnp.sqrt(fraction * (1 - fraction) / inside)
    offsets = jnp.array(_INTERPOLATION_DEVIATIONS, jnp.float32) * deviation
    fractions = jnp.clip(fraction + offsets, 0, 1)
    least, most = (lax.bitcast_convert_type(bits, dtype) for bits in (low, high - 1))
    values = least + (most - least) * fractions.astype(dtype)
    middle = low + (high - low) // 2
    candidates = jnp.where(jnp.isfinite(values), magnitude_bits(values), middle)
    return jnp.append(candidates, middle)


def magnitude_bits(weights: Float[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """Returns the bits without the sign: unsigned integers in the order of |weights|, NaN last."""
    unsigned = _UNSIGNED[_bits(weights)]
    bits = lax.bitcast_convert_type(weights, unsigned)
    return bits & unsigned(jnp.iinfo(unsigned).max >> 1)
