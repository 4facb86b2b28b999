"""`train`: sets up a run, and loops over its steps until the last one."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from dnw_jax import data
from dnw_jax.config import validate
from dnw_jax.errors import UserError
from dnw_jax.models import build_model, wiring
from dnw_jax.platform import agreement, devices
from dnw_jax.platform.interrupts import Interrupts
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.workdir import (
    CHECKPOINTS,
    RUN_FIELDS,
    TRACE,
    check_writable,
    config_changes,
    create_workdir,
    holds_run,
    restore,
)
from dnw_jax.run.writers import Progress, Writer
from dnw_jax.step.metrics import Sums
from dnw_jax.step.state import TrainState, create_train_state, map_over_seeds
from dnw_jax.train import seeds
from dnw_jax.train.dispatch import Dispatches
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import Feed, check_same_run, open_feed
from dnw_jax.train.plan import Plan
from dnw_jax.train.report import not_finite_error, print_start, print_summary
from dnw_jax.train.run_log import RunLog
from dnw_jax.train.seed_run import Masks, SeedRun
from dnw_jax.train.trace import Trace
from dnw_jax.train.warm_start import warm_start


@agreement.quiet_unless_first()
def train(config: ConfigDict, workdir: str | Path) -> None:
    """Trains the model of `config`, or resumes the run that is in `workdir`.

    A resumed run ends with the same bits as an uninterrupted one. With several processes (see
    `platform.join`) each of them calls this function; all train, process 0 writes and prints.

    Raises:
      UserError: `config` is not valid, the data are missing, `workdir` holds another model's run or
        a damaged checkpoint, or the loss is no longer finite (the last good checkpoint stays); or
        another process has such an error.
      KeyboardInterrupt: Ctrl-C or SIGTERM came, here or to another process, and a checkpoint was
        saved.
    """
    workdir, mesh = Path(workdir), devices.data_mesh()
    with contextlib.ExitStack() as stack:
        # First: JAX would swallow an exception that a signal raises in one of its callbacks.
        interrupts = stack.enter_context(Interrupts())
        with agreement.together():
            validate(config)
            devices.check_batch_size(config.batch_size, config.accumulate_steps, mesh)
            folder = check_writable(workdir)
            changes = config_changes(workdir, config, RUN_FIELDS) if holds_run(workdir) else []
            configs, workdirs = seeds.seed_configs(config), seeds.seed_workdirs(config, workdir)
            feed = stack.enter_context(contextlib.closing(open_feed(config, mesh)))
            plan = Plan.of(config, data.steps_per_epoch(feed.num_examples, config.batch_size))
            checkpoints = [
                stack.enter_context(Checkpoints(of_seed / CHECKPOINTS, config.checkpoint.keep))
                for of_seed in workdirs
            ]
        check_same_run(config, feed)
        agreement.check_shared(folder)
        states, step = _start_or_resume(configs, plan, checkpoints, interrupts)
        print_start(workdir, states[0], config, plan, changes)
        if step < plan.total:
            with agreement.together():
                log = _open_log(stack, config, workdir, plan, checkpoints, step=step)
            loop = TrainingLoop(config, workdir, plan, mesh, feed, log, interrupts)
            state = loop.finish(devices.replicate(seeds.stack_seeds(states), mesh))
            states = seeds.unstack_seeds(devices.local(state), config.num_seeds)
        print_summary(workdir, workdirs, states, configs, checkpoints)


def _start_or_resume(
    configs: list[ConfigDict], plan: Plan, checkpoints: list[Checkpoints], interrupts: Interrupts
) -> tuple[list[TrainState], int]:
    """Returns the state of each seed, and the number of updates that they have made."""
    step = seeds.common_step(checkpoints)
    with agreement.together(interrupts):
        states = [
            create_train_state(config, build_model(config), steps_per_epoch=plan.per_epoch)
            for config in configs
        ]
        if step is not None:
            pairs = zip(states, checkpoints, strict=True)
            states = [restore(state, seed_checkpoints, step) for state, seed_checkpoints in pairs]
        elif configs[0].init_from:
            states = [warm_start(*pair) for pair in zip(states, configs, strict=True)]
    return agreement.from_first(states), step or 0


def _open_log(
    stack: contextlib.ExitStack,
    config: ConfigDict,
    workdir: Path,
    plan: Plan,
    checkpoints: list[Checkpoints],
    *,
    step: int,
) -> RunLog:
    """Creates the workdirs and opens their files, which `stack` closes."""
    create_workdir(workdir, config)
    configs, workdirs = seeds.seed_configs(config), seeds.seed_workdirs(config, workdir)
    seed_runs = []
    for seed_config, folder, seed_checkpoints in zip(configs, workdirs, checkpoints, strict=True):
        create_workdir(folder, seed_config)
        writer = stack.enter_context(Writer(folder, step))
        seed_runs.append(SeedRun(seed_config, folder, plan, seed_checkpoints, writer))
    means_writer = stack.enter_context(Writer(workdir, step)) if len(workdirs) > 1 else None
    images_per_step = config.batch_size * config.num_seeds
    progress = stack.enter_context(Progress(plan.total, step, images_per_step))
    return RunLog(config, workdir, plan, seed_runs, means_writer, progress)


@dataclass
class TrainingLoop:
    """The loop over the steps of one run, from the step of its state to the last one."""

    config: ConfigDict
    workdir: Path
    plan: Plan
    mesh: Mesh
    feed: Feed
    log: RunLog
    interrupts: Interrupts

    def finish(self, state: TrainState) -> TrainState:
        """Trains, logs, evaluates and saves until the last step of the plan.

        Returns:
          The state after the last step. The state that is passed in is donated.

        Raises:
          UserError: as `train`. The state of the last good step is saved.
          KeyboardInterrupt: as `train`.
        """
        step, plan = int(np.max(state.step)), self.plan
        masks = devices.local(_masks(state))
        if step == 0 and self.config.model.get("edges") == "complete":
            # A lottery ticket needs the weights that the complete graph began with.
            self._save(0, state)
        zero = devices.replicate(Sums.zero(state.step.shape), self.mesh)
        trace = Trace(plan, self.workdir / TRACE)
        dispatches = Dispatches(self.feed)
        dispatches.compile(state, zero, step)
        self.log.progress.start()
        sums = zero  # over the examples since the last row of metrics
        stop = agreement.agreed_stop(self.feed.error, self.interrupts)
        while step < plan.total and stop is None:
            if plan.trace:
                with agreement.together():
                    trace.at(step)
            started_at = step
            state, sums, step = dispatches.advance(state, sums, step, plan.next_stop(step))
            if not np.all(np.isfinite(sums.loss)):
                raise self._not_finite_error(f"the training loss is {sums.loss}", step)
            self.log.advance(step, step - started_at, devices.local(sums))
            evaluates = plan.due(step, plan.evaluate)
            stop = agreement.agreed_stop(self.feed.error, self.interrupts)
            saves = evaluates or stop is not None or plan.due(step, plan.checkpoint)
            # Write a row at every checkpoint, because a resumed run starts with empty sums.
            if saves or plan.due(step, plan.log):
                old_masks, masks = masks, devices.local(_masks(state))
                self._log_training(step, devices.local(sums), old_masks, masks, dispatches)
                sums = zero
                dispatches.reset_clock()
            if saves:
                # The last update can spoil the weights although the loss before it was finite.
                if not all_finite(state):
                    raise self._not_finite_error("some weights are NaN or infinite", step)
                self._save(step, state, self._evaluate(step, state, masks) if evaluates else None)
        trace.stop()
        if stop is not None:
            raise stop
        return state

    def _log_training(
        self, step: int, sums: Sums, old_masks: Masks, masks: Masks, dispatches: Dispatches
    ) -> None:
        more: dict[str, float] = {}
        if skipped := agreement.total(self.feed.skipped):
            more["skipped"] = skipped
        if self.feed.reads_ahead:
            # Every step waits for the slowest process.
            more["input_wait"] = round(agreement.largest(dispatches.waited / dispatches.seconds), 4)
        with agreement.together():
            self.log.write_training_row(
                step, sums, old_masks, masks, seconds=dispatches.seconds, more=more
            )

    def _save(
        self, step: int, state: TrainState, accuracies: list[float | None] | None = None
    ) -> None:
        states = seeds.unstack_seeds(devices.local(state), len(self.log.seeds))
        accuracies = accuracies or [None] * len(states)
        for seed, seed_state, accuracy in zip(self.log.seeds, states, accuracies, strict=True):
            seed.save(step, seed_state, accuracy)

    def _evaluate(self, step: int, state: TrainState, masks: Masks) -> list[float | None]:
        """Returns the test accuracy of each seed; None while annealing leaves too many edges.

        A checkpoint with more edges than the budget must not become the best one.
        """
        try:
            metrics = evaluate_all(state, self.feed, self.config.batch_size, self.mesh)
        except Exception:  # for example a damaged photograph; the trained weights are good
            self._save(step, state)
            raise
        if not all(math.isfinite(row["loss"]) for row in metrics):
            losses = ", ".join(str(row["loss"]) for row in metrics)
            raise self._not_finite_error(f"the test loss is {losses}", step)
        state = devices.local(state)
        with agreement.together():
            self.log.write_evaluation(step, state, masks, metrics)
        parts = (seeds.unstack_seeds(tree, len(metrics)) for tree in (state, masks))
        rows = zip(self.log.seeds, *parts, metrics, strict=True)
        return [
            None if seed.is_annealing(seed_state, seed_masks) else row["accuracy"]
            for seed, seed_state, seed_masks, row in rows
        ]

    def _not_finite_error(self, problem: str, step: int) -> UserError:
        last = seeds.common_step([seed.checkpoints for seed in self.log.seeds])
        return not_finite_error(problem, step, last, self.config, self.workdir)


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether no array of `tree` holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def _masks(state: TrainState) -> Masks:
    """Returns which edges are real, by the name of the layer.

    The masks have a seeds axis if `state` has one.
    """

    def masks(state: TrainState) -> Masks:
        return wiring(state.model())

    return map_over_seeds(masks, state)(state)
