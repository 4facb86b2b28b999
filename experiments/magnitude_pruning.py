"""Prunes a dense run after training, and prints its test accuracy before and after.

    python -m experiments.magnitude_pruning --workdir=runs/dense --sparsity=0.9

Every kernel keeps its largest weights. The kept weights are not trained further; for that, run
`dnw_jax.main` with `--config.model.edges=fine_tune --config.init_from=runs/dense`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import dnw_jax
from dnw_jax.platform import devices
from dnw_jax.run import workdir
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import open_feed


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the test accuracy and loss before and after pruning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.9)
    flags = parser.parse_args(argv)
    config = dnw_jax.load_config(flags.workdir / workdir.CONFIG)
    state, _ = workdir.load_state(flags.workdir, "last", config)
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
