"""The compiled programs that make updates."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from dnw_jax import data
from dnw_jax.step.metrics import Sums
from dnw_jax.step.state import Batch, TrainState, map_over_seeds, random_key, update


@functools.partial(jax.jit, donate_argnums=0)
def train_steps(
    state: TrainState,
    sums: Sums,
    split: data.DeviceSplit,
    indices: Int[Array, "steps *seeds batch"],
    count: int,
) -> tuple[TrainState, Sums]:
    """`count` updates, at most as many as `indices` has rows; their examples join `sums`.

    One program for any count: a run gives the same bits however it is cut into dispatches. The
    state passed in is consumed. A state of several seeds (`stack_seeds`) has as many sums, and
    examples of its own for each.
    """
    batch_size = indices.shape[-1]

    def one(state: TrainState, sums: Sums, row: Array) -> tuple[TrainState, Sums]:
        start = state.step.astype(jnp.uint32) * batch_size
        positions = start + jnp.arange(batch_size, dtype=jnp.uint32)
        key = random_key(state.seed, "augmentation")
        state, new_sums = update(state, split.train_batch(row, positions, key))
        return state, sums + new_sums

    all_seeds = map_over_seeds(one, state)
    return lax.fori_loop(
        0, count, lambda row, carry: all_seeds(carry[0], carry[1], indices[row]), (state, sums)
    )


@functools.partial(jax.jit, donate_argnums=0)
def train_on(state: TrainState, sums: Sums, batch: Batch) -> tuple[TrainState, Sums]:
    """One update on `batch`, whose examples join `sums`. The state passed in is consumed."""
    state, new_sums = update(state, batch)
    return state, sums + new_sums
