"""What a run writes and prints while it trains: rows of metrics, means over seeds, progress."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax
from ml_collections import ConfigDict

from dnw_jax.run.workdir import write_evaluation
from dnw_jax.run.writers import Progress, Writer
from dnw_jax.step.metrics import Sums
from dnw_jax.step.optimizer import learning_rate_schedule
from dnw_jax.step.state import TrainState
from dnw_jax.train.plan import Plan
from dnw_jax.train.report import format_metrics
from dnw_jax.train.seed_run import Masks, SeedRun
from dnw_jax.train.seeds import means_and_deviations, unstack_seeds


@dataclass
class RunLog:
    """Writes the rows of every seed, and prints the progress of all.

    Attributes:
      config: of the run.
      workdir: of the run; with several seeds it contains the workdirs of the seeds.
      plan: at which steps the run logs, evaluates and saves.
      seeds: the seeds of the run.
      means_writer: writes the means over the seeds; None for a single seed.
      progress: the progress bar.
    """

    config: ConfigDict
    workdir: Path
    plan: Plan
    seeds: list[SeedRun]
    means_writer: Writer | None
    progress: Progress

    def advance(self, step: int, count: int, sums: Sums) -> None:
        """Moves the progress bar by `count` steps, to `step`."""
        self.progress.advance(count, self._summary(step, sums))

    def write_training_row(
        self,
        step: int,
        sums: Sums,
        old_masks: Masks,
        masks: Masks,
        *,
        seconds: float,
        more: dict[str, float],
    ) -> None:
        """Writes a row about the training since the last row.

        Args:
          step: updates made so far.
          sums: over the examples since the last row.
          old_masks, masks: the real edges at the last row and now.
          seconds: that the training since the last row took.
          more: further metrics, the same for all seeds.
        """
        images_per_second = float(np.sum(sums.examples)) / seconds
        shared = {
            "learning_rate": float(self._learning_rate(step - 1)),
            "images_per_second": images_per_second / len(self.seeds),
            **more,
        }
        parts = (unstack_seeds(tree, len(self.seeds)) for tree in (sums, old_masks, masks))
        rows = [
            seed.write_training_row(step, *of_seed, shared)
            for seed, *of_seed in zip(self.seeds, *parts, strict=True)
        ]
        self._write_means(step, "train", rows, {**shared, "images_per_second": images_per_second})
        self.progress.log(
            f"step {step}: {self._summary(step, sums)}, {images_per_second:.0f} img/s"
        )

    def write_evaluation(
        self, step: int, state: TrainState, masks: Masks, metrics: list[dict[str, Any]]
    ) -> None:
        """Writes and prints the results of an evaluation after `step` updates.

        Args:
          step: updates made so far.
          state, masks: of all seeds.
          metrics: of each seed.
        """
        parts = (unstack_seeds(tree, len(self.seeds)) for tree in (state, masks))
        for seed, seed_state, seed_masks, row in zip(self.seeds, *parts, metrics, strict=True):
            seed.write_evaluation(step, seed_state, seed_masks, row)
        num_examples = {"num_examples": metrics[0]["num_examples"]}
        means = self._write_means(step, "test", metrics, num_examples)
        if self.means_writer is not None:
            write_evaluation(self.workdir, {**means, "step": step, "changed": []})
        self.progress.line(
            f"epoch {self._epoch(step):.4g}/{self._epoch(self.plan.total):.4g} "
            f"(step {step}): test {format_metrics(means)}"
        )

    def _write_means(
        self, step: int, split: str, rows: list[dict[str, Any]], more: dict[str, Any]
    ) -> dict[str, float]:
        """Writes and returns the means over the seeds and `more`; the row itself for one seed."""
        if self.means_writer is None:
            return rows[0]
        names = [seed.workdir.name for seed in self.seeds]
        means = means_and_deviations(rows, names) | more
        self.means_writer.scalars(step, self._epoch(step), split, means)
        return means

    @functools.cached_property
    def _learning_rate(self) -> optax.Schedule:
        return learning_rate_schedule(self.config, self.plan.total, self.plan.per_epoch)

    def _epoch(self, step: int) -> float:
        return step / self.plan.per_epoch

    def _summary(self, step: int, sums: Sums) -> str:
        means = Sums(*map(np.sum, sums)).averages()  # over all seeds
        return (
            f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.1%}, "
            f"epoch {self._epoch(step):.1f}"
        )
