"""Schedules and SGD, in optax, with PyTorch's conventions (which the published runs used)."""

import math

import optax
from ml_collections import ConfigDict


def learning_rate_schedule(
    config: ConfigDict, total_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Learning rate of update t = 0, 1, ..., total_steps - 1, by `config.schedule.name`.

    multistep: times `factor` at each milestone (below 1 a fraction of the run, else an epoch), from
    the start of the next epoch on as the published code does; in a run of `num_steps` at once.
    cosine, linear: from `learning_rate` to 0, advanced before the first update as the published
    code does: t counts as t + 1. exponential: times `factor` after each epoch. constant.
    """
    schedule, base = config.schedule, config.optimizer.learning_rate
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
            return _advanced(optax.cosine_decay_schedule(base, total_steps))
        case "linear":
            return _advanced(optax.linear_schedule(base, 0.0, total_steps))
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


def _advanced(schedule: optax.Schedule) -> optax.Schedule:
    return lambda step: schedule(step + 1)


def sgd(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's SGD: g += decay * w; buffer = momentum * buffer + g; w -= rate * buffer.

    Weight decay applies to every parameter, norms and biases included.
    """
    optimizer = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.sgd(schedule, momentum=optimizer.momentum, nesterov=optimizer.nesterov),
    )
