"""Exactly the k edges of largest magnitude, found by counting instead of sorting.

The bit pattern of a non-negative float grows with its value, so the k-th largest magnitude is found
by bisection on the bits: one count over the weights per bit, O(size) each, without moving the data.
Under jit with a sharded input each count is a scalar all-reduce; nothing is gathered.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence

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


@jax.jit  # without it a call outside of jit would compile its loops anew each time
def _masks(weights: list[Float[Array, "..."]], count: Int[Array, ""]) -> list[Bool[Array, "..."]]:
    if not any(each.size for each in weights):
        return [jnp.zeros(each.shape, bool) for each in weights]
    dtype = jnp.result_type(*weights)
    magnitudes = [magnitude_bits(lax.stop_gradient(each).astype(dtype)) for each in weights]

    def count_of(holds: Callable[[Array], Array]) -> Int[Array, ""]:
        return sum((jnp.sum(holds(m), dtype=jnp.int32) for m in magnitudes), jnp.int32(0))

    # All real edges lie at or above the threshold, so fewer than `count` lie strictly above it.
    threshold = _largest(
        lambda candidate: count_of(lambda magnitude: magnitude >= candidate) >= count,
        jnp.zeros((), magnitudes[0].dtype),
        num_bits=jnp.finfo(dtype).bits - 1,
    )
    missing = count - count_of(lambda magnitude: magnitude > threshold)
    ties = _first([magnitude == threshold for magnitude in magnitudes], missing)
    return [(m > threshold) | tied for m, tied in zip(magnitudes, ties, strict=True)]


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


def _first(tied: list[Bool[Array, "..."]], count: Int[Array, ""]) -> list[Bool[Array, "..."]]:
    """The first `count` true elements in row-major order; one pass where all of them are wanted.

    Bisects on the flat index, because a cumulative sum would gather a sharded mask.
    """
    starts = itertools.accumulate((each.size for each in tied[:-1]), initial=0)
    indices = [start + _flat_index(each.shape) for start, each in zip(starts, tied, strict=True)]

    def before(end: Array) -> list[Array]:
        return [each & (index < end) for each, index in zip(tied, indices, strict=True)]

    def total(masks: list[Array]) -> Array:
        return sum((jnp.sum(mask, dtype=jnp.int32) for mask in masks), jnp.int32(0))

    def bisect(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # fewer than count lie below low; at least count below high
        middle = low + (high - low) // 2
        enough = total(before(middle)) >= count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # The end of the array is a right answer when all are wanted: then the loop takes no turn.
    end = jnp.int32(sum(each.size for each in tied))
    all_wanted = total(tied) <= count
    _, end = lax.while_loop(
        lambda bounds: bounds[0] < bounds[1], bisect, (jnp.where(all_wanted, end, 0), end)
    )
    return before(end)


def _flat_index(shape: tuple[int, ...]) -> Int[Array, "*shape"]:
    """Row-major index of each element, without a reshape (which would move a sharded array)."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    index = jnp.zeros(shape, jnp.int32)
    for axis, stride in enumerate(strides):
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
    return index
