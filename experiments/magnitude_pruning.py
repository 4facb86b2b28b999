"""Prints the test accuracy of a dense run before and after magnitude pruning.

    python -m experiments.magnitude_pruning --workdir=runs/dense --sparsity=0.9

Each kernel keeps its largest weights. The pruned network is not trained further; to do so, train
with `--config.model.edges=fine_tune --config.init_from=runs/dense`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import dnw_jax
from dnw_jax.config import CONFIG_FILE
from dnw_jax.platform import devices
from dnw_jax.run.workdir import load_model
from dnw_jax.step.state import evaluation_state
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import open_feed


def main(argv: Sequence[str] | None = None) -> None:
    """Prints accuracy and loss of the dense and of the pruned network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.9)
    flags = parser.parse_args(argv)
    config = dnw_jax.load_config(flags.workdir / CONFIG_FILE)
    state = evaluation_state(load_model(flags.workdir, "last", config).model)
    mesh = devices.data_mesh()
    feed = open_feed(config, mesh, train=False)
    sparsifier = dnw_jax.sparsify(state.params, flags.sparsity, rule="fine_tune")
    pruned, _ = sparsifier.apply(state.params, sparsifier.init(state.params))
    for name, params in (("dense", state.params), ("pruned", pruned)):
        replicated = devices.replicate(dataclasses.replace(state, params=params), mesh)
        (values,) = evaluate_all(replicated, feed, config.batch_size, mesh)
        print(f"{name}: test accuracy {values['accuracy']:.2%}, test loss {values['loss']:.4f}")


if __name__ == "__main__":
    main()
