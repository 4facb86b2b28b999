"""What XLA shall leave where it is: neither moved, nor computed again in each of its uses."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array

Results = TypeVar("Results")  # an array, or several


@custom_vmap
def _barrier(arrays: Any) -> Any:
    return lax.optimization_barrier(arrays)


@_barrier.def_vmap
def _barrier_of_all(axis_size: int, in_batched: list[Any], arrays: Any) -> tuple[Any, Any]:
    del axis_size
    return _barrier(arrays), in_batched[0]


@jax.custom_vjp
def barrier(arrays: Any) -> Any:
    """`lax.optimization_barrier`, which `jax.vmap` refuses in older versions of jax (0.7.2)."""
    return _barrier(arrays)


barrier.defvjp(lambda arrays: (_barrier(arrays), None), lambda _, cotangents: (cotangents,))


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

        always = barrier(jnp.bool_(True))
        return lax.cond(always, compute, nothing, *operands)

    return branching
