"""A worker: one step of ours on random images. Arguments: wiring, train or evaluate, batch size."""

import sys

import jax

import dnw_jax
from dnw_jax.train import create_train_state, evaluate_step, train_step
from experiments.benchmarks.alternate import serve


def main(wiring: str, mode: str, batch_size: str) -> None:
    """Serves steps until killed."""
    config = dnw_jax.load_config(f"configs/cifar10_tiny.py:wiring={wiring}")
    state = create_train_state(config, dnw_jax.build_model(config), steps_per_epoch=98)
    image = jax.random.normal(jax.random.key(0), (int(batch_size), 32, 32, 3))
    label = jax.random.randint(jax.random.key(1), (int(batch_size),), 0, 10)
    step = train_step if mode == "train" else evaluate_step
    serve(lambda: jax.block_until_ready(step(state, {"image": image, "label": label})))


if __name__ == "__main__":
    main(*sys.argv[1:])
