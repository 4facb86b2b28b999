"""A worker: steps of ours on random images. Arguments: case, mode, batch size.

Modes: `train` and `evaluate` call one step at a time; `run` makes several training steps in one
program, as a run on images that live on the device does, cropped and flipped there.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import dnw_jax
from dnw_jax import data
from dnw_jax.feed import train_steps
from dnw_jax.metrics import Sums
from dnw_jax.train import TrainState, create_train_state, evaluate_step, train_step
from experiments.benchmarks.alternate import serve
from experiments.benchmarks.cases import CASES

_STEPS_IN_RUN = 4


def main(name: str, mode: str, batch_size: str) -> None:
    """Serves steps until killed."""
    case, batch = CASES[name], int(batch_size)
    overrides = {
        "dataset.image_size": str(case.image_size),
        "dataset.num_classes": str(case.num_classes),
        "batch_size": batch_size,
    }
    config = dnw_jax.load_config(case.config, overrides)
    state = create_train_state(config, dnw_jax.build_model(config), steps_per_epoch=98)
    label = np.random.default_rng(1).integers(0, case.num_classes, batch).astype(np.int32)
    shape = (batch, case.image_size, case.image_size, 3)
    if mode == "run":
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        split = data.DeviceSplit.of(data.Split(images, label), config.dataset)
        serve(_run(state, split), _STEPS_IN_RUN)
    step = train_step if mode == "train" else evaluate_step
    image = jax.random.normal(jax.random.key(0), shape)
    serve(lambda: jax.block_until_ready(step(state, {"image": image, "label": label})))


def _run(state: TrainState, split: data.DeviceSplit) -> Callable[[], object]:
    indices = jnp.tile(jnp.arange(len(split.labels)), (_STEPS_IN_RUN, 1))

    def steps() -> None:
        nonlocal state
        state, sums = train_steps(state, Sums.zero(), split, indices, _STEPS_IN_RUN)
        jax.block_until_ready((state.params, sums))

    return steps


if __name__ == "__main__":
    main(*sys.argv[1:])
