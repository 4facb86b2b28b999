"""Only real edges carry signal forward; every edge, real or hallucinated, learns (section 2.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.edges.select import edge_mask


@jax.custom_vjp
def straight_through(
    weights: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`weights` where `mask`, zero elsewhere; the cotangent passes back to `weights` unchanged."""
    return jnp.where(mask, weights, jnp.zeros_like(weights))


def _forward(weights: Array, mask: Array) -> tuple[Array, None]:
    return straight_through(weights, mask), None


def _backward(_: None, cotangent: Array) -> tuple[Array, None]:
    return cotangent, None


straight_through.defvjp(_forward, _backward)


def top_edges(
    weights: Float[Array, "*shape"], num_edges: Int[Array, ""] | int
) -> Float[Array, "*shape"]:
    """Keeps the `num_edges` weights of largest magnitude and zeroes the rest.

    The gradient passes to all weights unchanged: w_uv <- w_uv + <Z_u, -alpha dL/dI_v> for every
    edge (the paper's update rule). Arguments and errors are those of `edge_mask`.
    """
    return straight_through(weights, edge_mask(weights, num_edges))
