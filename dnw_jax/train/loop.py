"""Training, top to bottom."""

import contextlib
import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from dnw_jax import data
from dnw_jax.config import validate
from dnw_jax.errors import UserError
from dnw_jax.models import build_model, wiring
from dnw_jax.platform import devices
from dnw_jax.platform.interrupts import Interrupts
from dnw_jax.run import workdir as layout
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.writers import Progress, Writer
from dnw_jax.step.metrics import Sums
from dnw_jax.step.optimizer import learning_rate_schedule
from dnw_jax.step.state import (
    TrainState,
    create_train_state,
    map_over_seeds,
)
from dnw_jax.train import seeds
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import MAX_STEPS, Feed, open_feed
from dnw_jax.train.plan import Plan
from dnw_jax.train.report import format_metrics, print_start, print_summary
from dnw_jax.train.seeds import Replica
from dnw_jax.train.warm_start import warm_start

# A dispatch makes about so much work: the bar moves, and the host costs nothing.
_SECONDS_PER_DISPATCH = 2.0


def train(config: ConfigDict, workdir: str | Path) -> None:
    """Trains the model of `config`, or goes on with the run that is in `workdir`.

    Raises:
      UserError: `config` is not valid, the data are missing, `workdir` holds another model's run or
        a damaged checkpoint, or the loss is no longer finite (the last good checkpoint stays).
    """
    validate(config)
    workdir, mesh = Path(workdir), devices.data_mesh()
    devices.check_batch_size(config.batch_size, config.accumulate_steps, mesh)
    layout.check_writable(workdir)
    own = seeds.seed_workdirs(config, workdir)
    changed = (
        layout.config_changes(workdir, config, layout.RUN) if layout.holds_run(workdir) else []
    )
    with contextlib.ExitStack() as opened:
        # First: an exception in the middle of JAX's own callbacks would be swallowed there.
        interrupts = opened.enter_context(Interrupts())
        feed = opened.enter_context(contextlib.closing(open_feed(config, mesh)))
        plan = Plan.of(config, data.steps_per_epoch(feed.num_examples, config.batch_size))
        recipes = seeds.seed_configs(config)
        states = [
            create_train_state(each, build_model(each), steps_per_epoch=plan.per_epoch)
            for each in recipes
        ]
        all_checkpoints = [
            opened.enter_context(Checkpoints(place / layout.CHECKPOINTS, config.checkpoint.keep))
            for place in own
        ]
        step = seeds.common_step(all_checkpoints)
        if step is not None:
            pairs = zip(states, all_checkpoints, strict=True)
            states = [layout.restore(state, checkpoints, step) for state, checkpoints in pairs]
        elif config.init_from:
            states = [warm_start(*each) for each in zip(states, recipes, strict=True)]
        step = step or 0
        interrupts.raise_if_interrupted()
        print_start(workdir, states[0], config, plan, changed)
        if step < plan.total:
            layout.create_workdir(workdir, config)
            for place, each in zip(own, recipes, strict=True):
                layout.create_workdir(place, each)
            run = Run(
                config=config,
                workdir=workdir,
                plan=plan,
                mesh=mesh,
                feed=feed,
                seeds=[
                    Replica(
                        each, place, plan, checkpoints, opened.enter_context(Writer(place, step))
                    )
                    for each, place, checkpoints in zip(recipes, own, all_checkpoints, strict=True)
                ],
                summary=opened.enter_context(Writer(workdir, step)) if len(own) > 1 else None,
                bar=opened.enter_context(
                    Progress(plan.total, step, config.batch_size * config.num_seeds)
                ),
                interrupts=interrupts,
            )
            state = run.finish(devices.replicate(seeds.stack_seeds(states), mesh))
            states = seeds.unstack_seeds(state, config.num_seeds)
        print_summary(workdir, own, states, recipes, all_checkpoints)


@dataclass
class Run:
    """One run from where its state stands to its end."""

    config: ConfigDict
    workdir: Path
    plan: Plan
    mesh: Mesh
    feed: Feed
    seeds: list[Replica]
    summary: Writer | None
    bar: Progress
    interrupts: Interrupts
    tracing: bool = False

    def finish(self, state: TrainState) -> TrainState:
        """Trains, logs, evaluates and saves until the plan's last step; the state then."""
        step, size = int(np.max(state.step)), 1
        masks = _masks(state)
        if step == 0 and self.config.model.get("edges") == "complete":
            # A lottery ticket needs the weights that the complete graph began with.
            self._save(0, state)
        nothing = devices.replicate(Sums.zero(state.step.shape), self.mesh)
        # No step yet: this compiles, so that what is timed below is training alone.
        state, _ = self.feed.advance(state, nothing, step, 0)
        self.bar.start()
        sums, seconds = nothing, 0.0  # since the last row
        stopping = self.interrupts.number is not None
        while step < self.plan.total and not stopping:
            self._trace(step)
            count = min(size, self.plan.next_stop(step) - step)
            started = time.perf_counter()
            state, sums = self.feed.advance(state, sums, step, count)
            jax.block_until_ready(sums)
            elapsed = time.perf_counter() - started
            step, seconds = step + count, seconds + elapsed
            if not np.all(np.isfinite(sums.loss)):
                raise self._not_finite(f"the training loss is {sums.loss}", step)
            size = _dispatch_size(elapsed / count)
            self.bar.advance(count, self._note(step, sums))
            evaluates = self.plan.due(step, self.plan.evaluate)
            stopping = self.interrupts.number is not None
            saves = evaluates or stopping or self.plan.due(step, self.plan.checkpoint)
            # Each checkpoint ends a row: a run that goes on from there starts with empty sums.
            if saves or self.plan.due(step, self.plan.log):
                before, masks = masks, _masks(state)
                self._log(step, sums, seconds, before, masks)
                sums, seconds = nothing, 0.0
            if saves:
                # The last update may have spoilt the weights after a loss that was still finite.
                if not all_finite(state):
                    raise self._not_finite("some weights are NaN or infinite", step)
                self._save(step, state, self._evaluate(step, state, masks) if evaluates else None)
        self._trace(self.plan.total)
        self.interrupts.raise_if_interrupted()
        return state

    def _save(
        self, step: int, state: TrainState, accuracies: list[float | None] | None = None
    ) -> None:
        states = self._parted(state)
        for seed, own, accuracy in zip(
            self.seeds, states, accuracies or [None] * len(states), strict=True
        ):
            seed.save(step, own, accuracy)

    def _parted(self, tree: Any) -> list[Any]:
        return seeds.unstack_seeds(tree, self.config.num_seeds)

    def _log(
        self,
        step: int,
        sums: Sums,
        seconds: float,
        before: dict[str, Array],
        masks: dict[str, Array],
    ) -> None:
        speed = float(np.sum(sums.examples)) / seconds
        more = {
            "learning_rate": float(self._learning_rate(step - 1)),
            "images_per_second": speed / len(self.seeds),
        }
        if self.feed.skipped:
            more["skipped"] = self.feed.skipped
        if self.feed.waited is not None:
            more["input_wait"] = round(self.feed.waited / seconds, 4)
            self.feed.waited = 0.0
        parts = (self._parted(tree) for tree in (sums, before, masks))
        values = [
            seed.log(step, own, more, *own_masks)
            for seed, own, *own_masks in zip(self.seeds, *parts, strict=True)
        ]
        self._summarise(step, "train", values, {**more, "images_per_second": speed})
        self.bar.log(f"step {step}: {self._note(step, sums)}, {speed:.0f} img/s")

    def _summarise(
        self, step: int, split: str, values: list[dict[str, Any]], more: dict[str, Any]
    ) -> dict[str, float]:
        """The means over the seeds, noted with `more`; of one seed what it has noted itself."""
        if self.summary is None:
            return values[0]
        names = [seed.workdir.name for seed in self.seeds]
        means = seeds.means_and_deviations(values, names) | more
        self.summary.scalars(step, step / self.plan.per_epoch, split, means)
        return means

    @functools.cached_property
    def _learning_rate(self) -> optax.Schedule:
        return learning_rate_schedule(self.config, self.plan.total, self.plan.per_epoch)

    def _evaluate(
        self, step: int, state: TrainState, masks: dict[str, Array]
    ) -> list[float | None]:
        """The test accuracy of each seed; None while an annealed wiring has too many edges."""
        try:
            values = evaluate_all(state, self.feed, self.config.batch_size, self.mesh)
        except UserError:  # a damaged photograph, say: what was learnt is not to blame
            self._save(step, state)
            raise
        if not all(math.isfinite(own["loss"]) for own in values):
            losses = ", ".join(str(own["loss"]) for own in values)
            raise self._not_finite(f"the test loss is {losses}", step)
        accuracies = []
        parts = zip(self.seeds, self._parted(state), self._parted(masks), values, strict=True)
        for seed, own_state, own_masks, own in parts:
            seed.evaluated(step, own_state, own_masks, own)
            annealing = seed.is_annealing(own_state, own_masks)
            accuracies.append(None if annealing else own["accuracy"])
        means = self._summarise(step, "test", values, {"num_examples": values[0]["num_examples"]})
        if self.summary is not None:
            layout.write_evaluation(self.workdir, {**means, "step": step, "changed": []})
        self.bar.line(
            f"epoch {step / self.plan.per_epoch:.4g}/{self.plan.total / self.plan.per_epoch:.4g} "
            f"(step {step}): test {format_metrics(means)}"
        )
        return accuracies

    def _not_finite(self, what: str, step: int) -> UserError:
        config = self.config
        last = seeds.common_step([seed.checkpoints for seed in self.seeds])
        kept = (
            "no checkpoint was saved"
            if last is None
            else f"the last good checkpoint is of step {last}"
        )
        cure = f"a smaller optimizer.learning_rate (now {config.optimizer.learning_rate})"
        if config.model.get("wiring") == "continuous":
            # What a solve gives that is not done by then.
            cure += f" or a larger model.solver.max_steps (now {config.model.solver.max_steps})"
        return UserError(
            f"{what} by step {step}, so the run stops; {kept}.\nStart again with {cure}"
            + (
                f", in another workdir or going on in {self.workdir} (from an earlier checkpoint "
                "if you delete the later ones)."
                if last is not None
                else "."
            )
        )

    def _note(self, step: int, sums: Sums) -> str:
        means = Sums(*map(np.sum, sums)).averages()  # over all seeds
        return (
            f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.1%}, "
            f"epoch {step / self.plan.per_epoch:.1f}"
        )

    def _trace(self, step: int) -> None:
        """Starts and stops the trace of `config.profile_steps`."""
        first, last = self.plan.profile or (None, None)
        if step == first and step < self.plan.total:
            jax.profiler.start_trace(str(self.workdir / layout.PROFILE))
            self.tracing = True
        elif self.tracing and step in (last, self.plan.total):
            jax.profiler.stop_trace()
            self.tracing = False


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no array of `tree` holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def _masks(state: TrainState) -> dict[str, Bool[Array, "..."]]:
    def masks(state: TrainState) -> dict[str, Array]:
        return wiring(state.model())

    return map_over_seeds(masks, state)(state)


def _dispatch_size(seconds_per_step: float) -> int:
    size = int(_SECONDS_PER_DISPATCH / max(seconds_per_step, 1e-6))
    return min(max(size, 1), MAX_STEPS)
