"""The config, the state and a random batch of a case."""

import jax
import numpy as np
from ml_collections import ConfigDict

import dnw_jax
from dnw_jax.train import TrainState, create_train_state
from experiments.benchmarks.cases import CASES


def our_config(name: str, batch_size: int, dtype: str = "float32") -> ConfigDict:
    """Returns the config of the case `name`."""
    case = CASES[name]
    overrides = {
        "dtype": dtype,
        "dataset.image_size": str(case.image_size),
        "dataset.num_classes": str(case.num_classes),
        "batch_size": str(batch_size),
    }
    return dnw_jax.load_config(case.config, overrides)


def our_state(config: ConfigDict, start: str | None = None) -> TrainState:
    """Returns a state at step 0; `start` is a file of weights by `reference_step`, or None."""
    if not start:
        return create_train_state(config, dnw_jax.build_model(config), steps_per_epoch=98)
    with np.load(start) as arrays:
        prefix = "weights/"
        names = [key for key in arrays.files if key.startswith(prefix)]
        weights = {key.removeprefix(prefix): arrays[key] for key in names}
    return create_train_state(config, dnw_jax.load_reference(weights, config), steps_per_epoch=98)


def random_batch(name: str, batch_size: int) -> dict[str, jax.Array]:
    """Returns normally distributed images and uniformly distributed labels."""
    case = CASES[name]
    shape = (batch_size, case.image_size, case.image_size, 3)
    label = np.random.default_rng(1).integers(0, case.num_classes, batch_size)
    image = jax.random.normal(jax.random.key(0), shape)
    return {"image": image, "label": jax.numpy.asarray(label, jax.numpy.int32)}
