"""The steps at which a run logs, evaluates, saves and ends."""

from typing import NamedTuple

from ml_collections import ConfigDict

from dnw_jax.step.state import total_steps


class Plan(NamedTuple):
    """The steps at which a run logs, evaluates, saves and ends, in updates made so far.

    Attributes:
      total: updates in the whole run.
      per_epoch: updates in an epoch.
      log, evaluate, checkpoint: the run does this after every so many updates, and at its end.
      trace: a `jax.profiler` trace begins after the first and ends after the second number of
        updates; None for no trace.
    """

    total: int
    per_epoch: int
    log: int
    evaluate: int
    checkpoint: int
    trace: tuple[int, int] | None

    @classmethod
    def of(cls, config: ConfigDict, per_epoch: int) -> "Plan":
        """Returns the plan that `config` describes, with `per_epoch` updates in an epoch."""
        evaluate = config.evaluate.every_steps or per_epoch
        return cls(
            total_steps(config, per_epoch),
            per_epoch,
            config.log.every_steps,
            evaluate,
            config.checkpoint.every_steps or evaluate,
            config.profile_steps,
        )

    def due(self, step: int, every: int) -> bool:
        """Returns whether something that is done `every` so many steps is done after `step`."""
        return step % every == 0 or step == self.total

    def next_stop(self, step: int) -> int:
        """Returns the first step after `step` at which the run does more than training."""
        regular = [step - step % n + n for n in (self.log, self.evaluate, self.checkpoint)]
        return min([*regular, self.total, *(p for p in self.trace or () if p > step)])
