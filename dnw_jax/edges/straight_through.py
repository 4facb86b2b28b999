"""Only real edges carry signal forward; every edge, real or hallucinated, learns (section 2.2)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.edges.select import edge_mask


@jax.custom_jvp
def straight_through(
    weights: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns `weights` where `mask` is True and zero elsewhere; gradients pass unchanged.

    The gradient is written by hand because it is the method itself (the update rule of section
    2.2), not the derivative of the forward pass. It is a `custom_jvp`: the tangent of the weights
    passes unchanged, and JAX transposes this identity into a cotangent that passes unchanged. So
    reverse mode, forward mode and forward over reverse (Hessian-vector products) all work. A
    `custom_vjp` would give the same gradient, but JAX refuses forward mode through one.
    """
    return jnp.where(mask, weights, jnp.zeros_like(weights))


@straight_through.defjvp
def _pass_unchanged(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    return straight_through(*primals), tangents[0]


def top_edges(
    weights: Float[Array, "*shape"], num_edges: Int[Array, ""] | int
) -> Float[Array, "*shape"]:
    """Keeps the `num_edges` weights of largest magnitude and zeroes the others.

    The gradient passes to all weights unchanged. With it plain gradient descent is the update rule
    of the paper (section 2.2): w_uv <- w_uv + <Z_u, -alpha dL/dI_v> for every edge, real or not.

    Args:
      weights: any shape of fewer than 2**31 elements; floats of 16, 32 or 64 bits.
      num_edges: a Python int in 0..size, or a traced integer, which is clipped into that range.

    Returns:
      An array of the shape and dtype of `weights`, with the choice of `edge_mask`.

    Raises:
      ValueError: `num_edges` is a Python int outside 0..size.
      TypeError: `weights` have another dtype, or `num_edges` is no integer.
    """
    return straight_through(weights, edge_mask(weights, num_edges))
