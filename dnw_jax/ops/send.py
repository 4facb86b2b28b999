"""The product of planes and edge weights, with a gradient that is fast on CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Sources = Float[Array, "batch height width sources"]
Targets = Float[Array, "batch height width targets"]
Weights = Float[Array, "sources targets"]


@jax.custom_vjp
def send(planes: Sources, weights: Weights, product: Targets | None = None) -> Targets:
    """Returns what each target receives: the sum of all planes, weighted by the edges to it.

    The gradient is hand-written because autodiff computes the transposed gradient of the weights,
    for which XLA:CPU has a slower kernel. Autodiff takes 1.25 times as long
    (jax 0.10.2, `python -m experiments.benchmarks.gradients`).

    Args:
      planes: the signals of the sources.
      weights: the weight of each edge.
      product: the result if it is known. It is returned without a computation; the gradient is the
        same.
    """
    return planes @ weights if product is None else product


def _forward(
    planes: Sources, weights: Weights, product: Targets | None
) -> tuple[Targets, tuple[Sources, Weights]]:
    return send(planes, weights, product), (planes, weights)


def _backward(
    residuals: tuple[Sources, Weights], cotangent: Targets
) -> tuple[Sources, Weights, None]:
    planes, weights = residuals
    # XLA would reorder the axes of four-dimensional operands first; two-dimensional ones it leaves.
    sent, pulled = (a.reshape(-1, a.shape[-1]) for a in (planes, cotangent))
    weights_cotangent = jnp.tensordot(sent, pulled, (0, 0))
    planes_cotangent = cotangent @ weights.T
    return planes_cotangent.astype(planes.dtype), weights_cotangent.astype(weights.dtype), None


send.defvjp(_forward, _backward)
