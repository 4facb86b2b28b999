"""Learning rate schedules and SGD in optax, with the conventions of PyTorch.

The published runs used PyTorch; its conventions reproduce their learning rates and updates.
"""

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
    """Returns the learning rate of update t = 0, 1, ..., total_steps - 1.

    `config.schedule.name` selects the schedule:
      multistep: is multiplied by `factor` at each milestone. A milestone below 1 is a fraction of
        the run, others are epochs. A milestone within an epoch takes effect at the start of the
        next epoch, as in the published code; in a run of `num_steps` it takes effect at once.
      cosine, linear: fall from `learning_rate` to 0. As in the published code they are advanced
        before the first update, so update t has the rate of t + 1.
      exponential: is multiplied by `factor` after each epoch.
      constant: stays `learning_rate`.

    During the first `warmup_epochs` the rate rises linearly to `learning_rate`; cosine and linear
    begin afterwards. With `schedule.per_epoch` t counts epochs and nothing is advanced: the
    published recipe of the ResNets.

    Args:
      config: its sections `schedule` and `optimizer`, and `num_steps`.
      total_steps: updates in the whole run.
      steps_per_epoch: updates in an epoch.
    """
    if config.schedule.per_epoch:
        num_epochs = math.ceil(total_steps / steps_per_epoch)
        by_epoch = _with_warmup(config, num_epochs, 1, advanced_by=0)
        return lambda step: by_epoch(step // steps_per_epoch)
    return _with_warmup(config, total_steps, steps_per_epoch, advanced_by=1)


def _with_warmup(
    config: ConfigDict, total_steps: int, steps_per_epoch: int, *, advanced_by: int
) -> optax.Schedule:
    base = config.optimizer.learning_rate
    warmup_steps = round(config.schedule.warmup_epochs * steps_per_epoch)
    schedule = _after_warmup(config, total_steps, steps_per_epoch, warmup_steps, advanced_by)
    if warmup_steps == 0:
        return schedule
    return lambda step: jnp.where(
        step < warmup_steps, base * (step + 1) / warmup_steps, schedule(step)
    )


def _after_warmup(
    config: ConfigDict, total_steps: int, steps_per_epoch: int, warmup_steps: int, advanced_by: int
) -> optax.Schedule:
    """Returns the schedule without warm-up. Only cosine and linear begin after `warmup_steps`."""
    schedule, base = config.schedule, config.optimizer.learning_rate
    start, length = warmup_steps - advanced_by, max(1, total_steps - warmup_steps)
    match schedule.name:
        case "multistep":
            steps = [
                _milestone_step(m, total_steps, steps_per_epoch, by_epoch=config.num_steps is None)
                for m in schedule.milestones
            ]
            # In a very short run several milestones can fall on one step; their factors multiply.
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
    # Without round, floating point would put a milestone at 0.55 of 100 epochs, which is
    # 55.00000000000001, at epoch 56.
    return (
        math.ceil(round(steps / steps_per_epoch, 6)) * steps_per_epoch if by_epoch else round(steps)
    )


def _from(start: int, schedule: optax.Schedule) -> optax.Schedule:
    return lambda step: schedule(step - start)


def sgd(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD with momentum and weight decay as in PyTorch.

    g += decay * w; buffer = momentum * buffer + g; w -= rate * buffer.

    Args:
      config: its section `optimizer`. Weight decay applies to every parameter, also of norms and
        biases, except parameters whose path (such as "layer1.0.bn1.scale") contains `no_decay`.
      schedule: the learning rate of each update.

    Raises:
      UserError: in `init`, if no path contains `no_decay`.
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
                "of parameters at the start of a run shows the paths. '' decays all parameters"
            )
        return decayed

    return mask
