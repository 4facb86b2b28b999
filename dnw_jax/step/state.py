"""What training carries from step to step, and the pure functions of it: one step of each kind."""

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
    """Everything a run needs to go on; a pytree, except for what describes the model.

    Attributes:
      step: updates made so far.
      seed: of the run; random numbers of a step depend on it and on the step alone.
      params: trained arrays, nested dicts as the model's attributes.
      variables: untrained ones: running statistics, masks.
      opt_state: the optimizer's.
      average: the exponential moving average of the parameters (`ema.decay`), or None.
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
        """The model as it is evaluated: with the averaged parameters, if there are."""
        params = self.params if self.average is None else self.average
        return nnx.merge(self.graphdef, params, self.variables, copy=True)


def create_train_state(
    config: ConfigDict, model: nnx.Module, *, steps_per_epoch: int
) -> TrainState:
    """A state at step 0 with the model's weights and the optimizer that `config` describes."""
    num_steps = total_steps(config, steps_per_epoch)
    schedule = learning_rate_schedule(config, num_steps, steps_per_epoch)
    optimizer = sgd(config, schedule)
    graphdef, params, variables = split(model)
    # Copies: whoever donates the state's buffers must not take the model's arrays away.
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
    """A model as its description, its trained and its untrained arrays, both nested dicts."""
    graphdef, params, variables = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(variables)


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Updates in the whole run."""
    return config.num_steps or config.num_epochs * steps_per_epoch


def random_key(seed: UInt[Array, ""], purpose: str) -> Key[Array, ""]:
    """The key for one purpose, so that no two see the same random numbers."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def update(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
    """One update of SGD on `batch`; with `accumulate_steps` > 1 on the mean gradient of its parts.

    The parts go through the model one after the other, each with its own batch statistics.
    """
    key = jax.random.fold_in(random_key(state.seed, "model"), state.step)
    state = _with_rules_advanced(state)
    if state.accumulate_steps == 1:
        grads, variables, sums = _gradients(state, state.variables, batch, key)
    else:
        grads, variables, sums = _accumulated_gradients(state, batch, key)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        # Less at the start, so that the random weights are soon forgotten.
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
    """`update`, compiled; gives the batch's `loss` and `accuracy` before the update.

    Pure: the state passed in stays valid. `batch` holds `image`, float32 [batch, height, width,
    channels], and `label`, int [batch].
    """
    state, sums = update(state, batch)
    return state, sums.means()


@jax.jit
def with_frozen_edges(state: TrainState) -> TrainState:
    """A state to evaluate batch after batch: its edges are chosen already."""

    def settle(state: TrainState) -> TrainState:
        model = state.model()
        for layer in edge_layers(model).values():
            layer.freeze_edges()
        graphdef, params, variables = split(model)
        trained = {"graphdef": graphdef, "params": params, "variables": variables}
        return dataclasses.replace(state, **trained, opt_state=(), average=None)

    return map_over_seeds(settle, state)(state)


@jax.jit
def evaluate_step(state: TrainState, batch: Batch) -> Sums:
    """Sums over `batch` in evaluation mode; where `batch["mask"]` is false nothing counts.

    Of a state of several seeds (`stack_seeds`): those of each.
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
    """`function`, mapped over the seeds if `state` is one of several (`stack_seeds`)."""
    if not state.step.ndim:
        return function
    # One seed of the size of CIFAR-10 fills a CPU: five in turn take 0.6 of the time of five at
    # once, and half of the memory; as long if they are as small as that of the digits.
    if jax.default_backend() == "cpu":
        return lambda *of_seeds: lax.map(lambda of_seed: function(*of_seed), of_seeds)
    return jax.vmap(function)


def _with_rules_advanced(state: TrainState) -> TrainState:
    """The rules told how far the run is, for those that change with time."""
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

    # Every `parts`-th example, so that each part is spread over the devices as the batch is.
    batches = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
    start = (jax.tree.map(jnp.zeros_like, state.params), state.variables, Sums.zero())
    carry, _ = lax.scan(add_part, start, (batches, jax.random.split(key, parts)))
    return carry
