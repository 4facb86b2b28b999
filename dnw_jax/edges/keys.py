"""Random keys that may be absent."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Key


def split_key(key: Key[Array, ""] | None, count: int) -> Sequence[Key[Array, ""] | None]:
    """Returns `count` independent keys, or `count` times None if `key` is None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
