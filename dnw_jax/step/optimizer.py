"""Schedules and SGD, in optax, with PyTorch's conventions (which the published runs used)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dnw_jax.errors import UserError


def learning_rate_schedule(
    config: ConfigDict, total_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Learning rate of update t = 0, 1, ..., total_steps - 1, by `config.schedule.name`.

    multistep: times `factor` at each milestone (below 1 a fraction of the run, else an epoch), from
    the start of the next epoch on as the published code does; in a run of `num_steps` at once.
    cosine, linear: from `learning_rate` to 0, advanced before the first update as the published
    code does: t counts as t + 1. exponential: times `factor` after each epoch. constant.

    In the first `warmup_epochs` it rises linearly to `learning_rate`; cosine and linear begin then.
    With `per_epoch` t counts epochs, and nothing is advanced: the published recipe of ResNets.
    """
    if config.schedule.per_epoch:
        num_epochs = math.ceil(total_steps / steps_per_epoch)
        by_epoch = _schedule(config, num_epochs, 1, advanced_by=0)
        return lambda step: by_epoch(step // steps_per_epoch)
    return _schedule(config, total_steps, steps_per_epoch, advanced_by=1)


def _schedule(
    config: ConfigDict, total_steps: int, steps_per_epoch: int, *, advanced_by: int
) -> optax.Schedule:
    base = config.optimizer.learning_rate
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch)
    falling = _falling(config, total_steps, steps_per_epoch, warmup, advanced_by)
    if warmup == 0:
        return falling
    return lambda step: jnp.where(step < warmup, base * (step + 1) / warmup, falling(step))


def _falling(
    config: ConfigDict, total_steps: int, steps_per_epoch: int, warmup: int, advanced_by: int
) -> optax.Schedule:
    """The schedule after the warm-up, from where those of a length of their own begin."""
    schedule, base = config.schedule, config.optimizer.learning_rate
    start, length = warmup - advanced_by, max(1, total_steps - warmup)
    match schedule.name:
        case "multistep":
            steps = [
                _milestone_step(m, total_steps, steps_per_epoch, by_epoch=config.num_steps is None)
                for m in schedule.milestones
            ]
            # Milestones of a very short run may fall on one step: then their factors multiply.
            scales = {step: schedule.factor ** steps.count(step) for step in steps}
            return optax.piecewise_constant_schedule(base, scales)
        case "cosine":
            return _from(start, optax.cosine_decay_schedule(base, length))
        case "linear":
            return _from(start, optax.linear_schedule(base, 0.0, length))
        case "exponential":
            return optax.exponential_decay(base, steps_per_epoch, schedule.factor, staircase=True)
        case "constant":
            return optax.constant_schedule(base)
    raise ValueError(f"no schedule is called {schedule.name}")


def _milestone_step(
    milestone: float, total_steps: int, steps_per_epoch: int, *, by_epoch: bool
) -> int:
    steps = milestone * (total_steps if milestone < 1 else steps_per_epoch)
    # The rounding keeps 0.3 of 10 epochs, 3.0000000000000004, from becoming 4.
    return (
        math.ceil(round(steps / steps_per_epoch, 6)) * steps_per_epoch if by_epoch else round(steps)
    )


def _from(start: int, schedule: optax.Schedule) -> optax.Schedule:
    return lambda step: schedule(step - start)


def sgd(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's SGD: g += decay * w; buffer = momentum * buffer + g; w -= rate * buffer.

    Weight decay applies to every parameter, norms and biases included, but for those whose path
    (such as "layer1.0.bn1.scale") contains `config.optimizer.no_decay`.
    """
    optimizer = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(
            optimizer.weight_decay, _decayed(optimizer.no_decay) if optimizer.no_decay else None
        ),
        optax.sgd(schedule, momentum=optimizer.momentum, nesterov=optimizer.nesterov),
    )


def _decayed(no_decay: str) -> Callable[[optax.Params], Any]:
    def mask(params: optax.Params) -> Any:
        decayed = jax.tree_util.tree_map_with_path(
            lambda path, _: no_decay not in jax.tree_util.keystr(path, simple=True, separator="."),
            params,
        )
        if all(jax.tree.leaves(decayed)):
            raise UserError(
                f"optimizer.no_decay = {no_decay!r}: no path of a parameter contains it; the table "
                "of parameters at the start of a run shows them. Nothing means: all are decayed"
            )
        return decayed

    return mask
