"""A case of ours: its state and a batch of random images."""

import jax
import numpy as np
from ml_collections import ConfigDict

import dnw_jax
from dnw_jax.train import TrainState, create_train_state
from experiments.benchmarks.cases import CASES


def our_config(name: str, batch_size: int, dtype: str = "float32") -> ConfigDict:
    """The config of a case."""
    case = CASES[name]
    overrides = {
        "dtype": dtype,
        "dataset.image_size": str(case.image_size),
        "dataset.num_classes": str(case.num_classes),
        "batch_size": str(batch_size),
    }
    return dnw_jax.load_config(case.config, overrides)


def our_state(config: ConfigDict, start: str | None = None) -> TrainState:
    """A state at step 0; with the weights of the published code's worker, if `start` has them."""
    if not start:
        return create_train_state(config, dnw_jax.build_model(config), steps_per_epoch=98)
    with np.load(start) as arrays:
        prefix = "weights/"
        names = [key for key in arrays.files if key.startswith(prefix)]
        weights = {key.removeprefix(prefix): arrays[key] for key in names}
    return create_train_state(config, dnw_jax.load_reference(weights, config), steps_per_epoch=98)


def random_batch(name: str, batch_size: int) -> dict[str, jax.Array]:
    """Normal images and random labels."""
    case = CASES[name]
    shape = (batch_size, case.image_size, case.image_size, 3)
    label = np.random.default_rng(1).integers(0, case.num_classes, batch_size)
    image = jax.random.normal(jax.random.key(0), shape)
    return {"image": image, "label": jax.numpy.asarray(label, jax.numpy.int32)}
