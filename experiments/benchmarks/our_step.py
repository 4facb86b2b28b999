"""A worker: steps of dnw_jax on random images. Arguments: case, mode, batch size, dtype, start.

Modes: `train` and `evaluate` call one step at a time. `run` makes several training steps as a run
does. For images that live on the device, one program crops, flips and makes all steps. For
photographs, each step is a program that consumes the previous state. `start` is optional: a file
that `reference_step` wrote, so that both codes begin with the same weights and images.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dnw_jax import data
from dnw_jax.platform.large_pages import restart_with_large_pages
from dnw_jax.step.metrics import Sums
from dnw_jax.step.programs import IndexedBatches, make_updates
from dnw_jax.train import TrainState, evaluate_step, train_step
from experiments.benchmarks.alternate import serve
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.ours import our_config, our_state, random_batch

_STEPS_IN_RUN = 4


def main(name: str, mode: str, batch_size: str, dtype: str, start: str | None = None) -> None:
    """Serves steps until killed."""
    config = our_config(name, int(batch_size), dtype)
    state, batch = our_state(config, start), random_batch(name, int(batch_size))
    if start:
        with np.load(start) as arrays:
            batch = {key: jnp.asarray(arrays[key]) for key in batch}
    if mode == "run":
        serve(_run(name, state, batch, config), _STEPS_IN_RUN)
    step = train_step if mode == "train" else evaluate_step
    serve(lambda: jax.block_until_ready(step(state, batch)))


def _run(
    name: str, state: TrainState, batch: dict[str, jax.Array], config: ConfigDict
) -> Callable[[], object]:
    images = np.random.default_rng(0).integers(0, 256, batch["image"].shape).astype(np.uint8)
    split = data.DeviceSplit.of(data.Split(images, np.asarray(batch["label"])), config.dataset)
    indices = jnp.tile(jnp.arange(len(split.labels)), (_STEPS_IN_RUN, 1))

    def steps() -> None:
        nonlocal state
        sums = Sums.zero()
        if "imagenet" in CASES[name].config:
            for _ in range(_STEPS_IN_RUN):
                state, sums = make_updates(state, sums, batch)
        else:
            batches = IndexedBatches(split, indices, _STEPS_IN_RUN)
            state, sums = make_updates(state, sums, batches)
        jax.block_until_ready((state.params, sums))

    return steps


if __name__ == "__main__":
    restart_with_large_pages()  # as runs do
    main(*sys.argv[1:])
