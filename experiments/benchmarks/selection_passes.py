"""Counts the passes over the weights that a selection makes before it writes the mask.

    python -m experiments.benchmarks.selection_passes

The weights are a million of each of several kinds, the budgets eight, from one edge to 90 %. The
counts depend on the weights alone, not on the machine.
"""

from collections.abc import Sequence
from statistics import mean

import jax
import jax.numpy as jnp

from dnw_jax.edges.select import find_bracket
from experiments.benchmarks.flags import flag_parser

SHAPE = (1024, 1024)
BUDGETS = (1, 5, 105, 1_000, 52_000, 262_000, 524_000, 944_000)


def kinds_of_weights() -> dict[str, jax.Array]:
    """Returns a million weights of each kind, by a name."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    normal = jax.random.normal(next(keys), SHAPE)
    spread = jnp.exp(30 * jax.random.normal(next(keys), SHAPE))
    half = jax.random.bernoulli(next(keys), 0.5, SHAPE)
    return {
        "uniform": jax.random.uniform(next(keys), SHAPE, minval=-1.0),
        "normal": normal,
        "normal, half of them zero": jnp.where(half, normal, 0),
        "normal, rounded to bfloat16": normal.astype(jnp.bfloat16).astype(jnp.float32),
        "bfloat16": normal.astype(jnp.bfloat16),
        "Cauchy": jax.random.cauchy(next(keys), SHAPE),
        "normal, times exp(30 x normal)": normal * spread,
        "five of 1e30, the others 1e-30": jnp.full(SHAPE, 1e-30).at[0, :5].set(1e30),
        "seven values": jnp.round(6 * jax.random.uniform(next(keys), SHAPE)),
        "one value": jnp.ones(SHAPE),
    }


@jax.jit
def passes(weights: jax.Array, num_edges: jax.Array) -> jax.Array:
    """Returns the number of passes that find the `num_edges`-th largest magnitude."""
    return find_bracket([weights], num_edges).passes


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each kind."""
    flag_parser(__doc__).parse_args(argv)
    print(f"{'weights':32s}  mean   max")
    for kind, weights in kinds_of_weights().items():
        counts = [int(passes(weights, jnp.int32(budget))) for budget in BUDGETS]
        print(f"{kind:32s} {mean(counts):5.1f} {max(counts):5d}", flush=True)


if __name__ == "__main__":
    main()
