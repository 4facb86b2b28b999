"""A worker: computes jaxpruner's magnitude masks. Imports no dnw_jax.

Arguments: a checkout of jaxpruner, and a JSON file of the parameters' shapes by path.
"""

import functools
import json
import math
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from experiments.benchmarks.alternate import serve


def main(checkout: str, shapes_file: str) -> None:
    """Serves selections until killed."""
    import jax  # noqa: PLC0415

    sys.path.insert(0, checkout)
    if not hasattr(jax, "tree_map"):
        vars(jax)["tree_map"] = jax.tree.map  # jaxpruner calls it; current JAX lacks it
    import jaxpruner  # noqa: PLC0415
    from jaxpruner import sparsity_distributions  # noqa: PLC0415

    shapes = json.loads(Path(shapes_file).read_text())
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        path: jax.random.normal(key, shape) / math.sqrt(math.prod(shape[:-1]))
        for key, (path, shape) in zip(keys, shapes.items(), strict=True)
    }
    updater = jaxpruner.MagnitudePruning(
        sparsity_distribution_fn=functools.partial(sparsity_distributions.uniform, sparsity=0.9)
    )
    sparsities = updater.sparsity_distribution_fn(params)  # outside jit: constants
    masks = jax.jit(lambda p: updater.create_masks(updater.calculate_scores(p), sparsities))
    serve(lambda: jax.block_until_ready(masks(params)))


if __name__ == "__main__":
    main(*sys.argv[1:])
