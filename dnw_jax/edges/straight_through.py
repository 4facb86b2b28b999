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
    """`weights` where `mask`, zero elsewhere; tangents and cotangents pass unchanged."""
    return jnp.where(mask, weights, jnp.zeros_like(weights))


@straight_through.defjvp
def _unchanged(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return straight_through(*primals), tangents[0]


def top_edges(
    weights: Float[Array, "*shape"], num_edges: Int[Array, ""] | int
) -> Float[Array, "*shape"]:
    """Keeps the `num_edges` weights of largest magnitude and zeroes the rest.

    The gradient passes to all weights unchanged: w_uv <- w_uv + <Z_u, -alpha dL/dI_v> for every
    edge (the paper's update rule). Arguments and errors are those of `edge_mask`.
    """
    return straight_through(weights, edge_mask(weights, num_edges))
