"""The training state, and the pure functions that make one step of training or of evaluation.

The model is a Flax NNX module, but the loop is functional: `nnx.split` takes the model apart once,
the state holds plain nested dicts of arrays and the `graphdef`, and plain `jax.jit` compiles the
steps. Checkpoints hold the same nested dicts, so they do not depend on Flax's internals. Inside a
transformation a model is merged with `copy=True`; without it Flax raises TraceContextError.
"""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt
from ml_collections import ConfigDict

from dnw_jax.models import edge_layers
from dnw_jax.step.metrics import Sums, cross_entropy
from dnw_jax.step.optimizer import learning_rate_schedule, sgd

Tree = Any  # nested dicts of arrays
Batch = dict[str, Array]  # image float32 [batch, height, width, channels]; label int [batch]; ...


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "seed", "params", "variables", "opt_state", "average"],
    meta_fields=[
        "graphdef",
        "optimizer",
        "label_smoothing",
        "accumulate_steps",
        "total_steps",
        "ema_decay",
    ],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training carries from step to step; a pytree.

    In the state of several seeds (`train.seeds.stack_seeds`) the first axis of each array is seeds.

    Attributes:
      step: updates made so far.
      seed: of the run. The random numbers of a step depend on the seed and the step alone.
      params: trained arrays, in nested dicts that follow the model's attributes.
      variables: untrained arrays: running statistics, and the masks of rules that keep one.
      opt_state: the state of `optimizer`.
      average: the exponential moving average of the parameters, or None if `ema_decay` is 0.
      graphdef: the model without its arrays.
      optimizer: turns gradients into updates.
      label_smoothing: weight of the uniform distribution in the targets, in [0, 1).
      accumulate_steps: parts of a batch whose gradients are averaged.
      total_steps: updates in the whole run.
      ema_decay: of the moving average, in [0, 1); 0 means no average.
    """

    step: Int[Array, ""]
    seed: UInt[Array, ""]
    params: Tree
    variables: Tree
    opt_state: optax.OptState
    average: Tree
    graphdef: nnx.GraphDef[nnx.Module]
    optimizer: optax.GradientTransformation
    label_smoothing: float
    accumulate_steps: int
    total_steps: int
    ema_decay: float

    def model(self) -> nnx.Module:
        """Returns the model as it is evaluated: with the averaged parameters if it has them."""
        params = self.params if self.average is None else self.average
        return nnx.merge(self.graphdef, params, self.variables, copy=True)


def create_train_state(
    config: ConfigDict, model: nnx.Module, *, steps_per_epoch: int
) -> TrainState:
    """Returns a state at step 0 with the weights of `model`.

    Args:
      config: describes the optimizer, the schedule and the length of the run.
      model: its arrays are copied.
      steps_per_epoch: updates in an epoch, which schedules count.
    """
    num_steps = total_steps(config, steps_per_epoch)
    schedule = learning_rate_schedule(config, num_steps, steps_per_epoch)
    optimizer = sgd(config, schedule)
    graphdef, params, variables = split(model)
    # Copies: when the buffers of the state are donated, the arrays of the model must stay valid.
    params, variables = jax.tree.map(jnp.copy, (params, variables))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(config.seed, jnp.uint32),
        params=params,
        variables=variables,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if config.ema.decay else None,
        graphdef=graphdef,
        optimizer=optimizer,
        label_smoothing=config.loss.label_smoothing,
        accumulate_steps=config.accumulate_steps,
        total_steps=num_steps,
        ema_decay=config.ema.decay,
    )


def evaluation_state(model: nnx.Module) -> TrainState:
    """Returns a state that can be evaluated but not trained: it has no optimizer."""
    graphdef, params, variables = split(model)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.zeros((), jnp.uint32),
        params=params,
        variables=variables,
        opt_state=(),
        average=None,
        graphdef=graphdef,
        optimizer=optax.identity(),
        label_smoothing=0.0,
        accumulate_steps=1,
        total_steps=1,
        ema_decay=0.0,
    )


def split(model: nnx.Module) -> tuple[nnx.GraphDef[nnx.Module], Tree, Tree]:
    """Returns the graphdef, the trained and the untrained arrays of a model, as nested dicts."""
    graphdef, params, variables = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(variables)


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the number of updates in the whole run."""
    return config.num_steps or config.num_epochs * steps_per_epoch


def random_key(seed: UInt[Array, ""], purpose: str) -> Key[Array, ""]:
    """Returns the key for one purpose; different purposes get independent random numbers."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def update(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
    """Makes one update of SGD on `batch`.

    With `accumulate_steps` > 1 the gradient is the mean over that many parts of the batch. The
    parts go through the model one after the other, and each has its batch statistics.

    Returns:
      The new state, and the sums over the batch before the update.
    """
    key = jax.random.fold_in(random_key(state.seed, "model"), state.step)
    state = _advance_rules(state)
    if state.accumulate_steps == 1:
        grads, variables, sums = _gradients(state, state.variables, batch, key)
    else:
        grads, variables, sums = _accumulated_gradients(state, batch, key)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        # A smaller decay at the start removes the random initial weights from the average.
        decay = jnp.minimum(state.ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, average, 1 - decay)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        variables=variables,
        opt_state=opt_state,
        average=average,
    )
    return state, sums


@jax.jit
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Makes one update of SGD on `batch`. Compiled and pure: the state passed in stays valid.

    Args:
      state: from `create_train_state` or from the previous step.
      batch: `image`, float32 [batch, height, width, channels], and `label`, int [batch].

    Returns:
      The new state, and `loss`, `accuracy` and `accuracy_top5` of the batch before the update.
    """
    state, sums = update(state, batch)
    return state, sums.means()


@jax.jit
def with_frozen_edges(state: TrainState) -> TrainState:
    """Returns a state for evaluating many batches, whose edges are chosen once for all of them.

    It cannot be trained: it has no optimizer state.
    """

    def freeze(state: TrainState) -> TrainState:
        model = state.model()
        for layer in edge_layers(model).values():
            layer.freeze_edges()
        graphdef, params, variables = split(model)
        frozen = {"graphdef": graphdef, "params": params, "variables": variables}
        return dataclasses.replace(state, **frozen, opt_state=(), average=None)

    return map_over_seeds(freeze, state)(state)


@jax.jit
def evaluate_step(state: TrainState, batch: Batch) -> Sums:
    """Returns the sums over `batch` in evaluation mode, for each seed of `state`.

    Args:
      state: of one seed or of several; every seed sees the same batch.
      batch: `image` and `label` as for `train_step`, and if some examples are padding `mask`,
        bool [batch], which is False for them: they do not count.
    """

    def evaluate(state: TrainState) -> Sums:
        model, mask = state.model(), batch.get("mask")
        # Examples of a batch influence each other in an adaptive ODE solve: padding must not.
        takes_mask = "mask" in inspect.signature(model).parameters
        logits = model(batch["image"], train=False, **({"mask": mask} if takes_mask else {}))
        losses = cross_entropy(logits, batch["label"])
        return Sums.of(losses, logits, batch["label"], mask)

    return map_over_seeds(evaluate, state)(state)


def map_over_seeds(function: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
    """Returns `function` mapped over the first axis of its arguments if `state` has several seeds.

    Accelerators compute all seeds at once (`vmap`). A CPU computes one seed after the other
    (`lax.map`): with five seeds of CIFAR-10 this takes 0.6 of the time of `vmap` and half of its
    memory, because one seed keeps a CPU busy; with the small seeds of the digits it takes the same
    time as `vmap`. Either way all seeds are in one program. JAX chooses when it lowers the program,
    so the device that it compiles for decides, not the one of the machine that compiles.
    """
    if not state.step.ndim:
        return function

    def one_by_one(*args: Any) -> Any:
        return lax.map(lambda args_of_seed: function(*args_of_seed), args)

    at_once = jax.vmap(function)
    return lambda *args: lax.platform_dependent(*args, cpu=one_by_one, default=at_once)


def _advance_rules(state: TrainState) -> TrainState:
    """Passes the progress of the run, in (0, 1], to the rules; some of them change with time."""
    model = state.model()
    progress = (state.step + 1) / state.total_steps
    for layer in edge_layers(model).values():
        layer.advance(progress)
    _, _, variables = split(model)
    return dataclasses.replace(state, variables=variables)


def _gradients(
    state: TrainState, variables: Tree, batch: Batch, key: Array
) -> tuple[Tree, Tree, Sums]:
    def loss(params: Tree) -> tuple[Array, tuple[Tree, Sums]]:
        model = nnx.merge(state.graphdef, params, variables, copy=True)
        logits = model(batch["image"], train=True, key=key)
        losses = cross_entropy(logits, batch["label"], state.label_smoothing)
        penalty = sum(layer.penalty() for layer in edge_layers(model).values())
        _, _, new_variables = split(model)
        return jnp.mean(losses) + penalty, (new_variables, Sums.of(losses, logits, batch["label"]))

    grads, (variables, sums) = jax.grad(loss, has_aux=True)(state.params)
    return grads, variables, sums


def _accumulated_gradients(state: TrainState, batch: Batch, key: Array) -> tuple[Tree, Tree, Sums]:
    parts = state.accumulate_steps

    def add_part(
        carry: tuple[Tree, Tree, Sums], part: tuple[Batch, Array]
    ) -> tuple[tuple[Tree, Tree, Sums], None]:
        total, variables, sums = carry
        grads, variables, part_sums = _gradients(state, variables, *part)
        total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
        return (total, variables, sums + part_sums), None

    # A part is every `parts`-th example, so every device holds as much of a part as of the batch.
    batches = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
    start = (jax.tree.map(jnp.zeros_like, state.params), state.variables, Sums.zero())
    carry, _ = lax.scan(add_part, start, (batches, jax.random.split(key, parts)))
    return carry
