"""The norms of `ops.norms` in the form that a TPU runs fastest.

XLA for TPU fuses a norm into the product or convolution after it, and the sums of its statistics
into the product before it. For this a norm must be one expression of few passes, without barriers,
and its gradient must not read the normalised planes: then XLA never writes them to memory.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

EPSILON = 1e-5
PIXELS, BATCH_AND_PIXELS = (1, 2), (0, 1, 2)


def statistics(planes: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns mean and (biased) variance over `axes`, which are kept, in float32.

    Planes of 16 bits are read once: E[x^2] - E[x]^2 loses no digits that they have. Planes of 32
    bits are read twice.
    """
    values = planes.astype(jnp.float32)
    mean = jnp.mean(values, axes, keepdims=True)
    if planes.dtype.itemsize > 2:
        return mean, jnp.mean(jnp.square(values - mean), axes, keepdims=True)
    square = jnp.mean(jnp.square(values), axes, keepdims=True)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def normalise(planes: Array, mean: Array, factor: Array, bias: Array, *, rectify: bool) -> Array:
    """Returns `(planes - mean) * factor + bias`, computed in float32 and, if asked, rectified."""
    normalised = (planes.astype(jnp.float32) - mean) * factor + bias
    return (jax.nn.relu(normalised) if rectify else normalised).astype(planes.dtype)


def gradients(
    planes: Array,
    scale: Array,
    bias: Array,
    statistics: tuple[Array, Array],
    cotangent: Array,
    *,
    axes: tuple[int, ...],
    rectify: bool,
) -> tuple[Array, Array, Array]:
    """Returns the cotangents of `planes`, `scale` and `bias`.

    Args:
      planes: the input of the norm.
      scale: factor for each node.
      bias: summand for each node.
      statistics: mean and variance of the planes over `axes`.
      cotangent: of the result of `normalise`.
      axes: the axes of the statistics.
      rectify: whether a ReLU follows the norm.
    """
    mean, var = statistics
    inverse_deviation = lax.rsqrt(var + EPSILON)
    factor = inverse_deviation * scale
    centred = planes.astype(jnp.float32) - mean
    standardised = centred * inverse_deviation
    passed = cotangent.astype(jnp.float32)
    if rectify:  # where the norm's own expression is positive
        passed = jnp.where(centred * factor + bias > 0, passed, 0)
    total = jnp.sum(passed, axes, keepdims=True)
    product = jnp.sum(passed * standardised, axes, keepdims=True)
    count = planes.size // max(mean.size, 1)
    change = passed - total / count - standardised * (product / count)
    return (
        (change * factor).astype(planes.dtype),
        jnp.sum(product, BATCH_AND_PIXELS),
        jnp.sum(total, BATCH_AND_PIXELS),
    )
