"""When what happens in a run."""

from typing import NamedTuple

from ml_collections import ConfigDict

from dnw_jax.step.state import total_steps


class Plan(NamedTuple):
    """When what happens, in steps: after the step of that number."""

    total: int
    per_epoch: int
    log: int
    evaluate: int
    checkpoint: int
    profile: tuple[int, int] | None

    @classmethod
    def of(cls, config: ConfigDict, per_epoch: int) -> "Plan":
        """The plan that `config` describes, with `per_epoch` steps in an epoch."""
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
        """Whether what happens `every` so many steps, and at the end, happens after `step`."""
        return step % every == 0 or step == self.total

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which anything happens."""
        regular = [step - step % n + n for n in (self.log, self.evaluate, self.checkpoint)]
        return min([*regular, self.total, *(p for p in self.profile or () if p > step)])
