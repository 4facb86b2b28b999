"""Results that XLA:CPU writes to memory once, instead of computing them in each of their uses."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Results = TypeVar("Results")  # an array, or several


def materialised(compute: Callable[..., Results], *operands: Array) -> Results:
    """`compute(*operands)`; on CPU fused neither with what gives the operands nor with its uses.

    A depthwise convolution reads its input nine times: with a norm fused into it, it is five times
    slower there. A branch whose condition XLA cannot know is the fence that its fusion respects;
    `lax.optimization_barrier` is gone by then.
    """
    return lax.platform_dependent(*operands, cpu=_behind_a_branch(compute), default=compute)


def _behind_a_branch(compute: Callable[..., Results]) -> Callable[..., Results]:
    def branching(*operands: Array) -> Results:
        def nothing(*operands: Array) -> Results:
            shapes = jax.eval_shape(compute, *operands)
            return jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)

        always = lax.optimization_barrier(jnp.bool_(True))
        return lax.cond(always, compute, nothing, *operands)

    return branching
