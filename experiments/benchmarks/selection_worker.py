"""A worker: the edges of the five graphs at x0.225, by a method: its argument."""

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
    """The k-th magnitude bit by bit: 31 passes."""
    magnitude = lax.bitcast_convert_type(jnp.abs(weights), jnp.uint32)

    def try_bit(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (jnp.uint32(1 << 30) >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(magnitude >= candidate) >= num_edges, candidate, found)

    return lax.bitcast_convert_type(lax.fori_loop(0, 31, try_bit, jnp.uint32(0)), jnp.float32)


# What gives the k-th largest magnitude; ties are not decided.
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

    def chosen(weights: jax.Array, num_edges: int) -> jax.Array:
        if method == "ours":
            return dnw_jax.top_edges(weights, num_edges)
        least = THRESHOLDS[method](weights, num_edges)
        return jnp.where(jnp.abs(weights) >= least, weights, 0)

    @jax.jit
    def choose(weights: list[jax.Array]) -> list[jax.Array]:
        return [chosen(w, k) for w, k in zip(weights, BUDGETS, strict=True)]

    serve(lambda: jax.block_until_ready(choose(weights)))


if __name__ == "__main__":
    restart_with_large_pages()  # as runs do
    main(*sys.argv[1:])
