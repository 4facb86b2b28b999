"""Training and evaluation, top to bottom."""

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

from dnw_jax import data, devices
from dnw_jax import workdir as layout
from dnw_jax.checkpoint import Checkpoints
from dnw_jax.config import validate
from dnw_jax.errors import UserError
from dnw_jax.feed import MAX_STEPS, Feed, open_feed
from dnw_jax.interrupts import Interrupts
from dnw_jax.metrics import Sums, edge_churn
from dnw_jax.models import build_model, edge_layers, wiring
from dnw_jax.optimizer import learning_rate_schedule
from dnw_jax.plan import Plan
from dnw_jax.report import announce, conclude, profiles, tell_changes
from dnw_jax.show.adjacency import adjacency_picture
from dnw_jax.train_state import (
    TrainState,
    create_train_state,
    evaluate_step,
    train_step,
)
from dnw_jax.warm_start import warm_start
from dnw_jax.writers import Progress, Writer

__all__ = ["TrainState", "create_train_state", "evaluate", "evaluate_step", "train", "train_step"]

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
    layout.check_place(workdir)
    # Without a checkpoint there is nothing that another model could contradict.
    started = any((workdir / layout.CHECKPOINTS).glob("*/"))
    changed = layout.changes(workdir, config, layout.RUN) if started else []
    feed = open_feed(config, mesh)
    plan = Plan.of(config, data.steps_per_epoch(feed.num_examples, config.batch_size))
    state = create_train_state(config, build_model(config), steps_per_epoch=plan.per_epoch)
    state = devices.replicate(state, mesh)
    with (
        Interrupts() as interrupts,
        contextlib.closing(feed),
        Checkpoints(workdir / layout.CHECKPOINTS, config.checkpoint.keep) as checkpoints,
    ):
        if checkpoints.latest is not None:
            state = layout.restore(state, checkpoints, checkpoints.latest)
        elif config.init_from:
            state = devices.replicate(warm_start(state, config), mesh)
        step = int(state.step)
        announce(workdir, state, config, plan, changed)
        if step < plan.total:
            layout.enter(workdir, config)
            with (
                Writer(workdir, step) as writer,
                Progress(plan.total, step, config.batch_size) as bar,
            ):
                state = Run(
                    config=config,
                    workdir=workdir,
                    plan=plan,
                    mesh=mesh,
                    feed=feed,
                    checkpoints=checkpoints,
                    writer=writer,
                    bar=bar,
                    interrupts=interrupts,
                ).finish(state)
        conclude(workdir, state, config, checkpoints)


@dataclass
class Run:
    """One run from where its state stands to its end."""

    config: ConfigDict
    workdir: Path
    plan: Plan
    mesh: Mesh
    feed: Feed
    checkpoints: Checkpoints
    writer: Writer
    bar: Progress
    interrupts: Interrupts
    tracing: bool = False

    def finish(self, state: TrainState) -> TrainState:
        """Trains, logs, evaluates and saves until the plan's last step; the state then."""
        step, size, stopping = int(state.step), 1, False
        masks = _masks(state)
        if step == 0 and self.config.model.get("edges") == "complete":
            # A lottery ticket needs the weights that the complete graph began with.
            self.checkpoints.save(0, layout.checkpoint_tree(state))
        nothing = devices.replicate(Sums.zero(), self.mesh)
        # No step yet: this compiles, so that what is timed below is training alone.
        state, _ = self.feed.advance(state, nothing, step, 0)
        self.bar.start()
        sums, seconds = nothing, 0.0  # since the last row
        while step < self.plan.total and not stopping:
            self._trace(step)
            count = min(size, self.plan.next_stop(step) - step)
            started = time.perf_counter()
            state, sums = self.feed.advance(state, sums, step, count)
            jax.block_until_ready(sums)
            elapsed = time.perf_counter() - started
            step, seconds = step + count, seconds + elapsed
            if not math.isfinite(sums.loss):
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
                accuracy = self._evaluate(step, state, masks) if evaluates else None
                self.checkpoints.save(step, layout.checkpoint_tree(state), accuracy)
        self._trace(self.plan.total)
        if stopping:
            raise KeyboardInterrupt(self.interrupts.number)
        return state

    def _log(
        self,
        step: int,
        sums: Sums,
        seconds: float,
        before: dict[str, Array],
        masks: dict[str, Array],
    ) -> None:
        values = sums.averages()
        values["learning_rate"] = float(self._learning_rate(step - 1))
        values["images_per_second"] = float(sums.examples) / seconds
        if self.feed.skipped:
            values["skipped"] = self.feed.skipped
        for name, mask in masks.items():
            live, replaced = edge_churn(before[name], mask)
            values[f"live_edges/{name}"] = int(live)
            values[f"edge_churn/{name}"] = float(replaced)
        self.writer.scalars(step, step / self.plan.per_epoch, "train", values)
        self.bar.log(
            f"step {step}: {self._note(step, sums)}, {values['images_per_second']:.0f} img/s"
        )

    @functools.cached_property
    def _learning_rate(self) -> optax.Schedule:
        return learning_rate_schedule(self.config, self.plan.total, self.plan.per_epoch)

    def _evaluate(self, step: int, state: TrainState, masks: dict[str, Array]) -> float | None:
        """The test accuracy; None while an annealed wiring has more edges than it will have."""
        try:
            values = evaluate_all(state, self.feed, self.config.batch_size, self.mesh)
        except UserError:  # a damaged photograph, say: what was learnt is not to blame
            self.checkpoints.save(step, layout.checkpoint_tree(state))
            raise
        if not math.isfinite(values["loss"]):
            raise self._not_finite(f"the test loss is {values['loss']}", step)
        epoch = step / self.plan.per_epoch
        self.writer.scalars(step, epoch, "test", values)
        layout.write_evaluation(self.workdir, {**values, "step": step, "changed": []})
        layers = edge_layers(state.model())
        for name, layer in layers.items():
            if layer.weights.ndim == 2:  # a graph; not a convolution
                picture = adjacency_picture(np.asarray(layer.weights), np.asarray(masks[name]))
                self.writer.picture(step, name, picture)
        self.bar.line(
            f"epoch {epoch:.4g}/{self.plan.total / self.plan.per_epoch:.4g} (step {step}): "
            f"test loss {values['loss']:.4f}, test accuracy {values['accuracy']:.2%}"
        )
        annealing = self.config.model.get("edges") == "l1_anneal" and any(
            int(mask.sum()) > layers[name].num_edges for name, mask in masks.items()
        )
        return None if annealing else values["accuracy"]

    def _not_finite(self, what: str, step: int) -> UserError:
        config, last = self.config, self.checkpoints.latest
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
        means = sums.averages()
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


def evaluate(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> dict[str, float]:
    """Evaluates a checkpoint of `workdir` on every test example; prints and notes the result.

    Args:
      config: of the same model; it may name other data or another batch size than the run's own.
      workdir: of the run.
      step: as in `dnw_jax.load`.

    Raises:
      UserError: as `dnw_jax.load`, and if the data are missing or `config` is of another model.
    """
    validate(config)
    workdir, mesh = Path(workdir), devices.data_mesh()
    changed = layout.changes(workdir, config)
    tell_changes("not as trained (trained != now)", changed)
    state, _ = layout.load_state(workdir, step, config)
    feed = open_feed(config, mesh, train=False)
    values = evaluate_all(devices.replicate(state, mesh), feed, config.batch_size, mesh)
    print(
        f"step {int(state.step)}: test loss {values['loss']:.4f}, test accuracy "
        f"{values['accuracy']:.2%} over {values['num_examples']} examples"
    )
    layout.write_evaluation(workdir, {**values, "step": int(state.step), "changed": changed})
    return values


def print_profile(config: ConfigDict, workdir: str | Path, step: int | str = "last") -> None:
    """Prints what the network of a checkpoint costs; arguments and errors as those of `evaluate`.

    MobileNetV1-like chains also as the published code counts them.
    """
    validate(config)
    layout.changes(Path(workdir), config)
    state, _ = layout.load_state(workdir, step, config)
    print(f"step {int(state.step)}, one image of {config.dataset.image_size} pixels a side:")
    for line in profiles(state.model(), config):
        print(line)


def evaluate_all(state: TrainState, feed: Feed, batch_size: int, mesh: Mesh) -> dict[str, float]:
    """The averages over every test example, and `num_examples`, whatever the batch size."""
    sums = Sums.zero()
    batch_size += -batch_size % mesh.size  # the padding fills up what does not split evenly
    for batch in feed.evaluation_batches(batch_size):
        sums += evaluate_step(state, batch)
    values = {**sums.averages(), "num_examples": int(sums.examples)}
    return values | ({"skipped": feed.skipped_test} if feed.skipped_test else {})


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no array of `tree` holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def _masks(state: TrainState) -> dict[str, Bool[Array, "..."]]:
    return wiring(state.model())


def _dispatch_size(seconds_per_step: float) -> int:
    size = int(_SECONDS_PER_DISPATCH / max(seconds_per_step, 1e-6))
    return min(max(size, 1), MAX_STEPS)
