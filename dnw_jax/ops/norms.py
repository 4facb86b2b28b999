"""Normalisation of planes, over the pixels of each image or over the batch; float32 statistics.

XLA:CPU fuses an expression with its reductions into one pass if each intermediate value has one
reader. So the hand-written backward passes compute each result separately, and store only planes
and statistics of each node. A TPU runs other forms: `ops.fused_norms`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.ops import fused_norms
from dnw_jax.ops.barriers import barrier, materialised
from dnw_jax.ops.fused_norms import BATCH_AND_PIXELS as _BATCH_AND_PIXELS
from dnw_jax.ops.fused_norms import EPSILON as _EPSILON
from dnw_jax.ops.fused_norms import PIXELS as _PIXELS

Planes = Float[Array, "batch height width nodes"]
PerNode = Float[Array, " nodes"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def instance_norm(planes: Planes, scale: PerNode, bias: PerNode, rectify: bool = False) -> Planes:
    """Returns planes with mean 0 and variance 1 over their pixels, then scaled and shifted.

    The gradient is hand-written so that each result is one pass: see the top of this file. With
    autodiff instead, a training step in discrete time takes 1.04 of the time (jax 0.10.2; median of
    7 turns of `python -m experiments.benchmarks.our_step discrete run 64 float32` with and without
    it). Measured alone it does not pay: there autodiff takes 0.88 of the time
    (`python -m experiments.benchmarks.gradients`).

    Args:
      planes: each plane of each image is normalised by itself.
      scale: factor for each node, float32.
      bias: summand for each node, float32.
      rectify: whether a ReLU follows.
    """

    def compute(planes: Array, scale: Array, bias: Array) -> Array:
        normalised = _standardise(planes.astype(jnp.float32)) * scale + bias
        return (jax.nn.relu(normalised) if rectify else normalised).astype(planes.dtype)

    def fused(planes: Array, scale: Array, bias: Array) -> Array:
        mean, var = fused_norms.statistics(planes, _PIXELS)
        factor = lax.rsqrt(var + _EPSILON) * scale
        return fused_norms.normalise(planes, mean, factor, bias, rectify=rectify)

    return lax.platform_dependent(
        planes, scale, bias, tpu=fused, default=functools.partial(materialised, compute)
    )


def _standardise(values: Array) -> Array:
    centred = values - jnp.mean(values, _PIXELS, keepdims=True)
    variance = jnp.mean(jnp.square(centred), _PIXELS, keepdims=True)
    return centred * lax.rsqrt(variance + _EPSILON)


def _instance_norm_forward(
    planes: Array, scale: Array, bias: Array, rectify: bool
) -> tuple[Array, tuple[Array, ...]]:
    out = instance_norm(planes, scale, bias, rectify)
    return out, (planes, scale, bias, out)


def _instance_norm_backward(
    rectify: bool, residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, Array]:
    def fused(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
        planes, scale, bias, _ = residuals
        statistics = fused_norms.statistics(planes, _PIXELS)
        return fused_norms.gradients(
            planes, scale, bias, statistics, cotangent, axes=_PIXELS, rectify=rectify
        )

    separate = functools.partial(_instance_norm_gradients, rectify)
    return lax.platform_dependent(residuals, cotangent, tpu=fused, default=separate)


def _instance_norm_gradients(
    rectify: bool, residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, Array]:
    def cotangent_before_relu(out: Array, cotangent: Array) -> Array:
        return _through_relu(out, cotangent, rectify).astype(jnp.float32)

    planes, scale, _, out = residuals
    planes, scale, out = barrier((planes, scale, out))
    values, passed = planes.astype(jnp.float32), cotangent_before_relu(out, cotangent)
    centred = values - jnp.mean(values, _PIXELS, keepdims=True)
    factor = lax.rsqrt(jnp.mean(jnp.square(centred), _PIXELS, keepdims=True) + _EPSILON)
    standardised = centred * factor
    mean = jnp.mean(passed, _PIXELS, keepdims=True)
    mean_product = jnp.mean(passed * standardised, _PIXELS, keepdims=True)
    planes_cotangent = (passed - mean - standardised * mean_product) * scale * factor
    planes, out, cotangent = barrier((planes, out, cotangent))
    standardised = _standardise(planes.astype(jnp.float32))
    scale_cotangent = jnp.sum(
        cotangent_before_relu(out, cotangent) * standardised, _BATCH_AND_PIXELS
    )
    out, cotangent = barrier((out, cotangent))
    bias_cotangent = jnp.sum(cotangent_before_relu(out, cotangent), _BATCH_AND_PIXELS)
    return planes_cotangent.astype(planes.dtype), scale_cotangent, bias_cotangent


instance_norm.defvjp(_instance_norm_forward, _instance_norm_backward)


def _through_relu(out: Array, cotangent: Array, rectify: bool) -> Array:
    # Multiplies by the sign, which is 0 or 1. A comparison would not be vectorised.
    return cotangent * jnp.sign(out) if rectify else cotangent


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    planes: Planes, scale: PerNode, bias: PerNode, rectify: bool
) -> tuple[Planes, PerNode, PerNode]:
    """Returns normalised planes, and the mean and the (biased) variance of the batch.

    Mean and variance get no gradient; their cotangents are ignored.

    The gradient is hand-written so that each result is one pass: see the top of this file.
    Autodiff takes 2.0 times as long (jax 0.10.2, `python -m experiments.benchmarks.gradients`).

    Args:
      planes: each node's planes are normalised together.
      scale: factor for each node, float32.
      bias: summand for each node, float32.
      rectify: whether a ReLU follows.
    """
    mean, var = lax.platform_dependent(planes, tpu=_fused_statistics, default=_statistics)
    return normalise_by_statistics(planes, mean, var, scale, bias, rectify=rectify), mean, var


def _fused_statistics(planes: Array) -> tuple[Array, Array]:
    mean, var = fused_norms.statistics(planes, _BATCH_AND_PIXELS)
    return mean[0, 0, 0], var[0, 0, 0]


def _statistics(planes: Array) -> tuple[Array, Array]:
    mean = jnp.mean(planes.astype(jnp.float32), _BATCH_AND_PIXELS)
    # A second conversion to float32: XLA would write a shared one to memory.
    var = jnp.mean(jnp.square(barrier(planes).astype(jnp.float32) - mean), _BATCH_AND_PIXELS)
    return mean, var


def normalise_by_statistics(
    planes: Planes,
    mean: PerNode,
    var: PerNode,
    scale: PerNode,
    bias: PerNode,
    *,
    rectify: bool,
) -> Planes:
    """Returns planes normalised by a given mean and variance; then scale, bias and a ReLU follow.

    Args:
      planes: in any floating-point type; the result has the same type.
      mean: to subtract from each node's planes.
      var: to divide by, after adding 1e-5 and taking the root.
      scale: factor for each node.
      bias: summand for each node.
      rectify: whether a ReLU follows.
    """
    compute = functools.partial(fused_norms.normalise, rectify=rectify)
    return materialised(compute, planes, mean, lax.rsqrt(var + _EPSILON) * scale, bias)


def _batch_norm_forward(
    planes: Array, scale: Array, bias: Array, rectify: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    out, mean, var = batch_norm(planes, scale, bias, rectify)
    return (out, mean, var), (planes, scale, bias, mean, var, out)


def _batch_norm_backward(
    rectify: bool, residuals: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    def fused(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
        planes, scale, bias, mean, var, _ = residuals
        return fused_norms.gradients(
            *(planes, scale, bias, (mean, var), cotangent), axes=_BATCH_AND_PIXELS, rectify=rectify
        )

    separate = functools.partial(_batch_norm_gradients, rectify)
    return lax.platform_dependent(residuals, cotangents[0], tpu=fused, default=separate)


def _batch_norm_gradients(
    rectify: bool, residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, Array]:
    planes, scale, _, mean, var, out = residuals
    planes, scale, mean, var, out = barrier((planes, scale, mean, var, out))
    factor = lax.rsqrt(var + _EPSILON)

    def passed_and_standardised(
        planes: Array, out: Array, cotangent: Array, mean: Array, factor: Array
    ) -> tuple[Array, Array]:
        passed = _through_relu(out, cotangent, rectify).astype(jnp.float32)
        return passed, (planes.astype(jnp.float32) - mean) * factor

    def centred(mean_passed: Array, mean_product: Array, scale: Array, *large: Array) -> Array:
        passed, standardised = passed_and_standardised(*large)
        centred = passed - mean_passed - standardised * mean_product
        return (centred * scale).astype(planes.dtype)

    # One copy for each use: XLA would write a shared result to memory and read it again.
    large, copy = (barrier((planes, out, cotangent, mean, factor)) for _ in range(2))
    bias_cotangent = jnp.sum(passed_and_standardised(*large)[0], _BATCH_AND_PIXELS)
    scale_cotangent = jnp.sum(jnp.multiply(*passed_and_standardised(*copy)), _BATCH_AND_PIXELS)
    count = planes[..., 0].size
    means = bias_cotangent / count, scale_cotangent / count
    # Written to memory: a product with the transposed gradient would compute it in a slow order.
    planes_cotangent = materialised(centred, *means, scale * factor, *large)
    return planes_cotangent, scale_cotangent, bias_cotangent


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
