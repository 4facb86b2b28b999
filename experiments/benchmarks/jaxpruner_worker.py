"""A worker: jaxpruner's magnitude masks. Arguments: its checkout, a file of shapes by path.

A script by itself, because its interpreter need not know dnw_jax.
"""

import functools
import json
import math
import sys
import time
from pathlib import Path


def main(checkout: str, shapes_file: str) -> None:
    """Serves selections until killed; the protocol is that of `alternate.serve`."""
    import jax  # noqa: PLC0415

    sys.path.insert(0, checkout)
    if not hasattr(jax, "tree_map"):
        vars(jax)["tree_map"] = jax.tree.map  # which it calls, and current JAX has removed
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
    sparsities = updater.sparsity_distribution_fn(params)  # constants: so it compiles to less
    masks = jax.jit(lambda p: updater.create_masks(updater.calculate_scores(p), sparsities))
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(masks(params))
        print(f"seconds {time.perf_counter() - start}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
