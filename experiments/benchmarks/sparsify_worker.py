"""A worker: steps of ResNet-50 with or without `sparsify`, or the selection alone.

Arguments: `step sparsify|dense BATCH_SIZE IMAGE_SIZE`, or `select FILE`, a JSON file of the
parameters' shapes by path.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util

import dnw_jax
from dnw_jax.platform.large_pages import restart_with_large_pages
from experiments.benchmarks.alternate import serve


def _model() -> nnx.Module:
    return dnw_jax.build_model(dnw_jax.load_config("configs/imagenet_resnet.py:edges=complete"))


def shapes_of_resnet50() -> dict[str, list[int]]:
    """Returns the shape of every parameter, by its path."""
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(_model(), nnx.Param)))
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path: list(leaf.shape) for path, leaf in flat.items()}


def steps(kind: str, batch_size: int, image_size: int) -> None:
    """Serves training steps (forward, backward, SGD with momentum) until killed."""
    graphdef, params, rest = nnx.split(_model(), nnx.Param, ...)  # type: ignore[misc]
    params = nnx.to_pure_dict(params)
    sparsifier = dnw_jax.sparsify(params, 0.9)
    state = sparsifier.init(params)
    images = jax.random.normal(jax.random.key(0), (batch_size, image_size, image_size, 3))
    labels = jnp.arange(batch_size)
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            if kind == "sparsify":
                params, _ = sparsifier.apply(params, state)
            logits = nnx.merge(graphdef, params, rest, copy=True)(images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    serve(lambda: jax.block_until_ready(step(params, opt_state)))


def selection(shapes: dict[str, list[int]]) -> None:
    """Serves the selection of all masks until killed."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        path: jax.random.normal(key, shape) / math.sqrt(math.prod(shape[:-1]))
        for key, (path, shape) in zip(keys, shapes.items(), strict=True)
    }
    sparsifier = dnw_jax.sparsify(params, 0.9)
    masks = jax.jit(sparsifier.wiring)
    serve(lambda: jax.block_until_ready(masks(params)))


if __name__ == "__main__":
    restart_with_large_pages()  # as runs do
    if sys.argv[1] == "step":
        steps(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        selection(json.loads(Path(sys.argv[2]).read_text()))
