"""The compiled program that makes updates, for the two kinds of training batches."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from dnw_jax.data import DeviceSplit
from dnw_jax.step.metrics import Sums
from dnw_jax.step.state import Batch, TrainState, map_over_seeds, random_key, update

# Rows of `IndexedBatches.indices`: the largest number of steps in one dispatch.
MAX_STEPS = 128


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["split", "indices", "count"], meta_fields=[]
)
@dataclass(frozen=True)
class IndexedBatches:
    """The batches of several steps, as indices of images that are on the device already.

    Attributes:
      split: the images.
      indices: which examples make up each batch, in 0..examples-1. The seeds axis exists only if
        the state is one of several seeds.
      count: the first `count` rows are batches, one for each step; the other rows are padding. The
        number of rows is always the same, so the program is compiled once and not for each `count`.
    """

    split: DeviceSplit
    indices: Int[Array, "steps *seeds batch"]
    count: int | Int[Array, ""]


@functools.partial(jax.jit, donate_argnums=0)
def make_updates(
    state: TrainState, sums: Sums, batches: IndexedBatches | Batch
) -> tuple[TrainState, Sums]:
    """Makes one update for each batch and adds the examples of the batches to `sums`.

    A run gives the same bits however its steps are divided into dispatches, because every dispatch
    runs the same program.

    Args:
      state: of one seed or of several (`stack_seeds`). It is donated: its buffers are reused and
        cannot be read afterwards.
      sums: of the examples so far; with as many seeds as `state`.
      batches: several batches as indices, or a single batch of one seed. Such a batch may have
        `mask`, bool [batch]: unless it is True for all examples, because all hosts have read their
        rows, the update is left out.

    Returns:
      The state after the updates, and the new sums.
    """
    if isinstance(batches, IndexedBatches):
        return _indexed_updates(state, sums, batches)
    mask = batches.get("mask")
    if mask is None:
        return _one_update(state, sums, batches)
    batch = {name: array for name, array in batches.items() if name != "mask"}
    return lax.cond(
        jnp.all(mask), _one_update, lambda state, sums, _: (state, sums), state, sums, batch
    )


def _one_update(state: TrainState, sums: Sums, batch: Batch) -> tuple[TrainState, Sums]:
    state, new_sums = update(state, batch)
    return state, sums + new_sums


def _indexed_updates(
    state: TrainState, sums: Sums, batches: IndexedBatches
) -> tuple[TrainState, Sums]:
    batch_size = batches.indices.shape[-1]

    def one_update(state: TrainState, sums: Sums, indices: Array) -> tuple[TrainState, Sums]:
        # uint32 wraps around after 4 billion examples, which only repeats augmentations.
        start = state.step.astype(jnp.uint32) * batch_size
        positions = start + jnp.arange(batch_size, dtype=jnp.uint32)
        key = random_key(state.seed, "augmentation")
        state, new_sums = update(state, batches.split.train_batch(indices, positions, key))
        return state, sums + new_sums

    update_all_seeds = map_over_seeds(one_update, state)
    return lax.fori_loop(
        0,
        batches.count,
        lambda row, carry: update_all_seeds(*carry, batches.indices[row]),
        (state, sums),
    )
