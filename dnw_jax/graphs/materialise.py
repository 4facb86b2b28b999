"""Results that XLA:CPU writes to memory once, instead of computing them in each of their uses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def materialised(compute: Callable[..., Array], *operands: Array) -> Array:
    """`compute(*operands)`; on CPU not fused into what uses it.

    A depthwise convolution reads its input nine times: with a norm fused into it, it is five times
    slower there. A branch whose condition XLA cannot know is the fence that its fusion respects;
    `lax.optimization_barrier` is gone by then.
    """
    return lax.platform_dependent(*operands, cpu=_behind_a_branch(compute), default=compute)


def _behind_a_branch(compute: Callable[..., Array]) -> Callable[..., Array]:
    def branching(*operands: Array) -> Array:
        result = jax.eval_shape(compute, *operands)
        return lax.cond(
            lax.optimization_barrier(jnp.bool_(True)),
            compute,
            lambda *_: jnp.zeros(result.shape, result.dtype),
            *operands,
        )

    return branching
