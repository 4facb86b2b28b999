"""Barriers that stop XLA from moving an operation or from computing it again at every use."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Results = TypeVar("Results")  # a pytree of arrays


@jax.custom_vjp
def barrier(arrays: Any) -> Any:
    """Returns `arrays`, a pytree, behind `lax.optimization_barrier`; cotangents pass without one.

    The gradient is hand-written because JAX's puts a second barrier on the cotangents, which stops
    fusion in the backward pass. Measured alone it makes no difference
    (1.01, jax 0.10.2, `python -m experiments.benchmarks.gradients`).
    """
    return lax.optimization_barrier(arrays)


barrier.defvjp(
    lambda arrays: (lax.optimization_barrier(arrays), None),
    lambda _, cotangents: (cotangents,),
)


def materialised(compute: Callable[..., Results], *operands: Array) -> Results:
    """Returns `compute(*operands)`; XLA:CPU fuses it neither with its producers nor its consumers.

    A depthwise convolution reads its input nine times. With a norm fused into it, it takes five
    times as long on CPU. `lax.optimization_barrier` does not help: XLA removes it before fusion.
    XLA does not fuse across a branch, and it keeps a branch whose condition it cannot evaluate.
    """
    return lax.platform_dependent(*operands, cpu=_in_a_branch(compute), default=compute)


def _in_a_branch(compute: Callable[..., Results]) -> Callable[..., Results]:
    def branching(*operands: Array) -> Results:
        def zeros(*operands: Array) -> Results:
            shapes = jax.eval_shape(compute, *operands)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        always = barrier(jnp.bool_(True))
        return lax.cond(always, compute, zeros, *operands)

    return branching
