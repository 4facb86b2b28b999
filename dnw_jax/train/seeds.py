"""Several seeds of one recipe side by side: trained by one program, each with a workdir of its own.

The arrays of all seeds' states are stacked, seeds first; a state of one seed is not. Each seed's
workdir is that of an ordinary run; the workdir around them holds means and standard deviations.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from dnw_jax.errors import UserError
from dnw_jax.models import edge_layers
from dnw_jax.run import workdir as layout
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.writers import Writer
from dnw_jax.show.adjacency import adjacency_picture
from dnw_jax.step.metrics import Sums, edge_churn
from dnw_jax.step.state import TrainState
from dnw_jax.train.plan import Plan

_AVERAGED = ("loss", "accuracy", "accuracy_top5")
Masks = dict[str, Array]


def seed_configs(config: ConfigDict) -> list[ConfigDict]:
    """The config of each seed by itself: `seed`, `seed` + 1, ..."""
    if config.num_seeds == 1:
        return [config]
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [_with_seed(config, seed) for seed in seeds]


def _with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.seed, own.num_seeds = seed, 1
    return own


def seed_workdirs(config: ConfigDict, workdir: Path) -> list[Path]:
    """The workdir of each seed."""
    if config.num_seeds == 1:
        return [workdir]
    return [workdir / f"seed_{own.seed}" for own in seed_configs(config)]


def stack_seeds(states: list[TrainState]) -> TrainState:
    """One state of all seeds; of one seed: itself."""
    if len(states) == 1:
        return states[0]
    # Alike, but made anew for each seed: a tree's structure must be equal.
    meta = {"graphdef": states[0].graphdef, "optimizer": states[0].optimizer}
    alike = [dataclasses.replace(state, **meta) for state in states]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *alike)


def unstack_seeds(tree: Any, num_seeds: int) -> list[Any]:
    """What `stack_seeds` put together, or anything else that was computed of it."""
    if num_seeds == 1:
        return [tree]
    return [jax.tree.map(lambda array, i=index: array[i], tree) for index in range(num_seeds)]


def common_step(all_checkpoints: list[Checkpoints]) -> int | None:
    """The last step of which all seeds have a checkpoint: a kill may have come in between.

    Raises:
      UserError: some seeds have checkpoints, but there is no common step.
    """
    steps = [set(checkpoints.steps) for checkpoints in all_checkpoints]
    common = set.intersection(*steps)
    if any(steps) and not common:
        raise UserError(
            "the seeds of this workdir have no step in common of which all have a checkpoint; "
            "delete their folders, seed_*, to start anew, or train each by itself"
        )
    return max(common, default=None)


def means_and_deviations(rows: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
    """Of loss and accuracies: `loss`, `loss_std` (of a sample), and `loss/NAME` of each seed."""
    values: dict[str, float] = {}
    for metric in _AVERAGED:
        of_seeds = [row[metric] for row in rows]
        values |= {metric: mean(of_seeds), f"{metric}_std": stdev(of_seeds)}
        values |= {f"{metric}/{name}": row[metric] for name, row in zip(names, rows, strict=True)}
    return values


@dataclass
class Replica:
    """One seed of a run: where it stands in its workdir."""

    config: ConfigDict
    workdir: Path
    plan: Plan
    checkpoints: Checkpoints
    writer: Writer

    def log(
        self, step: int, sums: Sums, more: dict[str, float], before: Masks, masks: Masks
    ) -> dict[str, float]:
        """A row about the training since the last one; gives its values."""
        values = sums.averages() | more
        for name, mask in masks.items():
            live, replaced = edge_churn(before[name], mask)
            values[f"live_edges/{name}"] = int(live)
            values[f"edge_churn/{name}"] = float(replaced)
        self.writer.scalars(step, step / self.plan.per_epoch, "train", values)
        return values

    def save(self, step: int, state: TrainState, accuracy: float | None = None) -> None:
        """A checkpoint."""
        self.checkpoints.save(step, layout.checkpoint_tree(state), accuracy)

    def evaluated(self, step: int, state: TrainState, masks: Masks, values: dict[str, Any]) -> None:
        """A row, a note and pictures of the wiring, after an evaluation that gave `values`."""
        self.writer.scalars(step, step / self.plan.per_epoch, "test", values)
        layout.write_evaluation(self.workdir, {**values, "step": step, "changed": []})
        for name, layer in edge_layers(state.model()).items():
            if layer.weights.ndim == 2:  # a graph; not a convolution
                picture = adjacency_picture(np.asarray(layer.weights), np.asarray(masks[name]))
                self.writer.picture(step, name, picture)

    def is_annealing(self, state: TrainState, masks: Masks) -> bool:
        """Whether an annealed wiring still has more edges than it will have."""
        layers = edge_layers(state.model())
        return self.config.model.get("edges") == "l1_anneal" and any(
            int(mask.sum()) > layers[name].num_edges for name, mask in masks.items()
        )
