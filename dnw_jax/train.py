"""Training and evaluation, top to bottom."""

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from dnw_jax import data, devices
from dnw_jax import workdir as layout
from dnw_jax.checkpoint import Checkpoints
from dnw_jax.config import validate
from dnw_jax.errors import UserError
from dnw_jax.interrupts import Interrupts
from dnw_jax.metrics import Sums, edge_churn
from dnw_jax.models import build_model, edge_layers, wiring
from dnw_jax.optimizer import learning_rate_schedule
from dnw_jax.plan import Plan
from dnw_jax.report import announce, conclude, tell_changes
from dnw_jax.show.adjacency import adjacency_picture
from dnw_jax.train_state import (
    TrainState,
    create_train_state,
    evaluate_step,
    random_key,
    train_step,
    update,
)
from dnw_jax.writers import Progress, Writer

__all__ = ["TrainState", "create_train_state", "evaluate", "evaluate_step", "train", "train_step"]

# A dispatch makes about so much work: the bar moves, and the host costs nothing.
_SECONDS_PER_DISPATCH = 0.5
_MAX_STEPS_PER_DISPATCH = 128


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
    train_split, test_split = (_load_split(config, name, mesh) for name in ("train", "test"))
    plan = Plan.of(config, data.steps_per_epoch(len(train_split.labels), config.batch_size))
    state = create_train_state(config, build_model(config), steps_per_epoch=plan.per_epoch)
    state = devices.replicate(state, mesh)
    with (
        Interrupts() as interrupts,
        Checkpoints(workdir / layout.CHECKPOINTS, config.checkpoint.keep) as checkpoints,
    ):
        if checkpoints.latest is not None:
            state = layout.restore(state, checkpoints, checkpoints.latest)
        step = int(state.step)
        announce(workdir, state, plan, changed)
        if step < plan.total:
            layout.enter(workdir, config)
            with (
                Writer(workdir, step) as writer,
                Progress(plan.total, step, config.batch_size) as bar,
            ):
                Run(
                    config=config,
                    workdir=workdir,
                    plan=plan,
                    mesh=mesh,
                    train_split=train_split,
                    test_split=test_split,
                    checkpoints=checkpoints,
                    writer=writer,
                    bar=bar,
                    interrupts=interrupts,
                ).finish(state)
        conclude(workdir, checkpoints)


@dataclass
class Run:
    """One run from where its state stands to its end."""

    config: ConfigDict
    workdir: Path
    plan: Plan
    mesh: Mesh
    train_split: data.DeviceSplit
    test_split: data.DeviceSplit
    checkpoints: Checkpoints
    writer: Writer
    bar: Progress
    interrupts: Interrupts
    tracing: bool = False

    def finish(self, state: TrainState) -> None:
        """Trains, logs, evaluates and saves until the plan's last step."""
        step, size, stopping = int(state.step), 1, False
        masks = _masks(state)
        nothing = devices.replicate(Sums.zero(), self.mesh)
        # No step yet: this compiles, so that what is timed below is training alone.
        state, _ = train_steps(state, nothing, self.train_split, self._indices(step, 0), 0)
        self.bar.start()
        sums, seconds = nothing, 0.0  # since the last row
        while step < self.plan.total and not stopping:
            self._trace(step)
            count = min(size, self.plan.next_stop(step) - step)
            started = time.perf_counter()
            indices = self._indices(step, count)
            state, sums = train_steps(state, sums, self.train_split, indices, count)
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

    def _indices(self, step: int, count: int) -> Array:
        """Which examples the next `count` steps see: int32 [_MAX_STEPS_PER_DISPATCH, batch]."""
        seed, num_examples = self.config.seed, len(self.train_split.labels)
        indices = np.zeros((_MAX_STEPS_PER_DISPATCH, self.config.batch_size), np.int32)
        for row in range(count):
            indices[row] = data.train_indices(
                seed, step + row, num_examples, self.config.batch_size
            )
        return devices.split_batch(jnp.asarray(indices), self.mesh, axis=1)

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

    def _evaluate(self, step: int, state: TrainState, masks: dict[str, Array]) -> float:
        values = evaluate_split(state, self.test_split, self.config.batch_size, self.mesh)
        if not math.isfinite(values["loss"]):
            raise self._not_finite(f"the test loss is {values['loss']}", step)
        epoch = step / self.plan.per_epoch
        self.writer.scalars(step, epoch, "test", values)
        layout.write_evaluation(self.workdir, {**values, "step": step, "changed": []})
        for name, layer in edge_layers(state.model()).items():
            picture = adjacency_picture(np.asarray(layer.weight[...]), np.asarray(masks[name]))
            self.writer.picture(step, name, picture)
        self.bar.line(
            f"epoch {epoch:.4g}/{self.plan.total / self.plan.per_epoch:.4g} (step {step}): "
            f"test loss {values['loss']:.4f}, test accuracy {values['accuracy']:.2%}"
        )
        return values["accuracy"]

    def _not_finite(self, what: str, step: int) -> UserError:
        config, last = self.config, self.checkpoints.latest
        kept = f"the last good checkpoint is of step {last}" if last else "no checkpoint was saved"
        cure = f"a smaller optimizer.learning_rate (now {config.optimizer.learning_rate})"
        if config.model.get("wiring") == "continuous":
            # What a solve gives that is not done by then.
            cure += f" or a larger model.solver.max_steps (now {config.model.solver.max_steps})"
        return UserError(
            f"{what} by step {step}, so the run stops; {kept}.\nStart again with {cure}"
            + (
                f", in another workdir or going on in {self.workdir} (from an earlier checkpoint "
                "if you delete the later ones)."
                if last
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


@functools.partial(jax.jit, donate_argnums=0)
def train_steps(
    state: TrainState,
    sums: Sums,
    split: data.DeviceSplit,
    indices: Int[Array, "steps batch"],
    count: int,
) -> tuple[TrainState, Sums]:
    """`count` updates, at most as many as `indices` has rows; their examples join `sums`.

    One program for any count: a run gives the same bits however it is cut into dispatches. The
    state passed in is consumed.
    """
    augmentation_key = random_key(state.seed, "augmentation")
    batch_size = indices.shape[1]

    def one(row: Array, carry: tuple[TrainState, Sums]) -> tuple[TrainState, Sums]:
        state, sums = carry
        start = state.step.astype(jnp.uint32) * batch_size
        positions = start + jnp.arange(batch_size, dtype=jnp.uint32)
        state, new_sums = update(
            state, split.train_batch(indices[row], positions, augmentation_key)
        )
        return state, sums + new_sums

    return lax.fori_loop(0, count, one, (state, sums))


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
    split = _load_split(config, "test", mesh)
    values = evaluate_split(devices.replicate(state, mesh), split, config.batch_size, mesh)
    print(
        f"step {int(state.step)}: test loss {values['loss']:.4f}, test accuracy "
        f"{values['accuracy']:.2%} over {values['num_examples']} examples"
    )
    layout.write_evaluation(workdir, {**values, "step": int(state.step), "changed": changed})
    return values


def evaluate_split(
    state: TrainState, split: data.DeviceSplit, batch_size: int, mesh: Mesh
) -> dict[str, float]:
    """`loss`, `accuracy` (0..1) and `num_examples` over every example, whatever the batch size."""
    sums = Sums.zero()
    batch_size += -batch_size % mesh.size  # the padding fills up what does not split evenly
    for batch in data.evaluation_batches(len(split.labels), batch_size):
        sums += _evaluate_batch(state, split, *devices.split_batch(batch, mesh))
    return {**sums.averages(), "num_examples": int(sums.examples)}


@jax.jit
def _evaluate_batch(
    state: TrainState, split: data.DeviceSplit, indices: Array, mask: Array
) -> Sums:
    return evaluate_step(state, split.evaluation_batch(indices, mask))


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no array of `tree` holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def _masks(state: TrainState) -> dict[str, Bool[Array, "..."]]:
    return wiring(state.model())


def _dispatch_size(seconds_per_step: float) -> int:
    size = int(_SECONDS_PER_DISPATCH / max(seconds_per_step, 1e-6))
    return min(max(size, 1), _MAX_STEPS_PER_DISPATCH)


def _load_split(config: ConfigDict, name: Literal["train", "test"], mesh: Mesh) -> data.DeviceSplit:
    split = data.load_split(config.dataset, name)
    return devices.replicate(data.DeviceSplit.of(split, config.dataset), mesh)
