"""PyTorch's default initialisation of layers.

The published code relies on it: the initial magnitudes decide which edges are chosen first.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.nn.initializers import Initializer


@functools.cache
def uniform_fan_in(fan_in: int) -> Initializer:
    """Returns an initializer of U(-b, b) with b = 1 / sqrt(fan_in), for weights and biases.

    The result is cached: modules with equal settings hold the same function, so that their programs
    compile once.
    """
    bound = fan_in**-0.5

    def init(
        key: jax.Array, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype or float, -bound, bound)

    return init
