"""A worker: our masks of the five graphs at x0.225."""

import jax

import dnw_jax
from dnw_jax.graphs.initialization import uniform_fan_in
from experiments.benchmarks.alternate import serve

SHAPES = ((32, 64), (192, 256), (384, 512), (2816, 3072), (1536, 2048))
BUDGETS = (104, 1245, 4977, 72991, 79627)


def main() -> None:
    """Serves selections until killed."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    weights = [
        uniform_fan_in(shape[0])(key, shape) for key, shape in zip(keys, SHAPES, strict=True)
    ]

    @jax.jit
    def choose(weights: list[jax.Array]) -> list[jax.Array]:
        return [dnw_jax.top_edges(w, k) for w, k in zip(weights, BUDGETS, strict=True)]

    serve(lambda: jax.block_until_ready(choose(weights)))


if __name__ == "__main__":
    main()
