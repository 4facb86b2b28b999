"""PyTorch's default initialisation, which the published code relies on (its selection sees it)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.nn.initializers import Initializer


@functools.cache
def uniform_fan_in(fan_in: int) -> Initializer:
    """Initializer U(-b, b) with b = 1 / sqrt(fan_in), for the weights and biases of a linear map.

    Cached, so that modules built alike hold the same function and compile once.
    """
    bound = fan_in**-0.5

    def init(
        key: jax.Array, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype or float, -bound, bound)

    return init
