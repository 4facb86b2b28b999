"""The signal that planes send along edges: a product, with the gradient that is fast on CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def send(
    planes: Float[Array, "batch height width sources"],
    weights: Float[Array, "sources targets"],
    received: Float[Array, "batch height width targets"] | None = None,
) -> Float[Array, "batch height width targets"]:
    """What each target receives: the sum of all planes, weighted by the edges that lead to it.

    `received` is the result where it is known already: then only the gradient is still wanted.
    """
    return planes @ weights if received is None else received


def _forward(
    planes: Array, weights: Array, received: Array | None
) -> tuple[Array, tuple[Array, Array]]:
    return send(planes, weights, received), (planes, weights)


def _backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array, None]:
    planes, weights = residuals
    # Autodiff would make the transposed gradient, for which XLA:CPU has a kernel half as fast.
    # As rows, since of more axes it would change the order first.
    sent, wanted = (each.reshape(-1, each.shape[-1]) for each in (planes, cotangent))
    to_weights = jnp.tensordot(sent, wanted, (0, 0))
    return cotangent @ weights.T, to_weights, None


send.defvjp(_forward, _backward)
