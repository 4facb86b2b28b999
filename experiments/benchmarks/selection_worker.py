"""A worker: selects the edges of the five graphs at x0.225. Argument: the method."""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

import dnw_jax
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.platform.large_pages import restart_with_large_pages
from experiments.benchmarks.alternate import serve
from experiments.benchmarks.cases import BUDGETS, SHAPES


def _bisection(weights: jax.Array, num_edges: int) -> jax.Array:
    """Returns the k-th largest magnitude, found bit by bit in 31 passes."""
    magnitude = lax.bitcast_convert_type(jnp.abs(weights), jnp.uint32)

    def try_bit(i: jax.Array, bits: jax.Array) -> jax.Array:
        candidate = bits | (jnp.uint32(1 << 30) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(magnitude >= candidate) >= num_edges, candidate, bits)

    return lax.bitcast_convert_type(lax.fori_loop(0, 31, try_bit, jnp.uint32(0)), jnp.float32)


# Functions that return the k-th largest magnitude. They do not break ties.
THRESHOLDS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "bisection": _bisection,
    "top_k": lambda weights, k: lax.top_k(jnp.abs(weights).ravel(), k)[0][-1],
    "sort": lambda weights, k: jnp.sort(jnp.abs(weights).ravel())[-k],
}
METHODS = ("ours", *THRESHOLDS)


def main(method: str) -> None:
    """Serves selections until killed."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    weights = [
        uniform_fan_in(shape[0])(key, shape) for key, shape in zip(keys, SHAPES, strict=True)
    ]

    def select(weights: jax.Array, num_edges: int) -> jax.Array:
        if method == "ours":
            return dnw_jax.top_edges(weights, num_edges)
        threshold = THRESHOLDS[method](weights, num_edges)
        return jnp.where(jnp.abs(weights) >= threshold, weights, 0)

    @jax.jit
    def select_all(weights: list[jax.Array]) -> list[jax.Array]:
        return [select(w, k) for w, k in zip(weights, BUDGETS, strict=True)]

    serve(lambda: jax.block_until_ready(select_all(weights)))


if __name__ == "__main__":
    restart_with_large_pages()  # as runs do
    main(*sys.argv[1:])
