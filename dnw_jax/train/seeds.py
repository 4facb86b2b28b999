"""Several seeds of one config side by side: their configs, their workdirs and their arrays.

`num_seeds` trains all seeds in one program. The arrays of their states are stacked, with the seeds
as the first axis; the state of a single seed has no such axis. The workdir of each seed is that of
an ordinary run, so nothing that reads a workdir needs to know about seeds. The workdir around them
holds means and standard deviations.
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dnw_jax.errors import UserError
from dnw_jax.platform.agreement import from_first, together
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.step.state import TrainState

_AVERAGED_METRICS = ("loss", "accuracy", "accuracy_top5")

# In place of a step, which is never negative.
_NO_CHECKPOINTS, _NONE_IN_COMMON = -1, -2


def seed_configs(config: ConfigDict) -> list[ConfigDict]:
    """Returns one config for each seed: `seed`, `seed + 1`, ..., each with `num_seeds` 1."""
    if config.num_seeds == 1:
        return [config]
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [_with_seed(config, seed) for seed in seeds]


def _with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    seed_config = config.copy_and_resolve_references()
    with seed_config.unlocked():
        seed_config.seed, seed_config.num_seeds = seed, 1
    return seed_config


def seed_workdirs(config: ConfigDict, workdir: Path) -> list[Path]:
    """Returns the workdir of each seed: `workdir` itself for a single seed, else `seed_N` in it."""
    if config.num_seeds == 1:
        return [workdir]
    return [workdir / f"seed_{seed_config.seed}" for seed_config in seed_configs(config)]


def stack_seeds(states: list[TrainState]) -> TrainState:
    """Returns one state, whose arrays have the seeds as first axis; a single state unchanged."""
    if len(states) == 1:
        return states[0]
    # Not jax.tree.map: it requires equal static fields, but each state has its own graphdef and
    # optimizer object. All of them do the same, so the result has those of the first state.
    arrays_of_states = zip(*map(jax.tree.leaves, states), strict=True)
    stacked = [jnp.stack(arrays) for arrays in arrays_of_states]
    return jax.tree.unflatten(jax.tree.structure(states[0]), stacked)


def unstack_seeds(tree: Any, num_seeds: int) -> list[Any]:
    """Returns the part of each seed of a stacked state, or of anything computed from one.

    The inverse of `stack_seeds`; for a single seed, whose arrays have no seeds axis, `[tree]`.
    """
    if num_seeds == 1:
        return [tree]
    return [jax.tree.map(lambda array, i=seed: array[i], tree) for seed in range(num_seeds)]


def common_step(checkpoints_of_seeds: list[Checkpoints]) -> int | None:
    """Returns the last step of which every seed has a checkpoint, or None without checkpoints.

    All processes use what process 0 sees: a file system may show a new folder later to another.

    A kill between the saves of two seeds leaves some seeds with a later checkpoint than others.

    Raises:
      UserError: some seeds have checkpoints, but no step is common to all.
    """
    for checkpoints in checkpoints_of_seeds:
        checkpoints.wait()
    with together():
        steps = [set(checkpoints.steps) for checkpoints in checkpoints_of_seeds]
    last = max(set.intersection(*steps), default=_NONE_IN_COMMON if any(steps) else _NO_CHECKPOINTS)
    last = int(from_first(np.int64(last)))
    if last == _NONE_IN_COMMON:
        raise UserError(
            "the seeds of this workdir have no step in common of which all have a checkpoint; "
            "delete their folders, seed_*, to start from scratch, or train each seed by itself"
        )
    return None if last == _NO_CHECKPOINTS else last


def means_and_deviations(rows: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
    """Returns the statistics over seeds of the loss and the accuracies.

    Args:
      rows: the metrics of each seed.
      names: of the seeds.

    Returns:
      For each metric: `loss` (mean), `loss_std` (standard deviation of a sample), and `loss/NAME`
      of each seed.
    """
    statistics: dict[str, float] = {}
    for metric in _AVERAGED_METRICS:
        values = [row[metric] for row in rows]
        statistics |= {metric: mean(values), f"{metric}_std": stdev(values)}
        statistics |= {f"{metric}/{name}": v for name, v in zip(names, values, strict=True)}
    return statistics
