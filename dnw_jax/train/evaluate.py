"""Evaluation over every test example."""

import jax
from jax.sharding import Mesh

from dnw_jax.platform import devices
from dnw_jax.platform.agreement import agreed_stop, total
from dnw_jax.step.metrics import Sums
from dnw_jax.step.state import TrainState, evaluate_step, with_frozen_edges
from dnw_jax.train.feed import Feed
from dnw_jax.train.seeds import unstack_seeds


def evaluate_all(
    state: TrainState, feed: Feed, batch_size: int, mesh: Mesh
) -> list[dict[str, float]]:
    """Returns the averages over every test example, for each seed.

    Args:
      state: of one seed or of several (`stack_seeds`).
      feed: yields the test examples.
      batch_size: of the evaluation; it does not change the result.
      mesh: the devices.

    Returns:
      For each seed `loss`, `accuracy`, `accuracy_top5`, `num_examples`, and `skipped` if damaged
      examples were skipped.

    Raises:
      UserError: an example cannot be read, here or by another process.
    """
    state, sums = with_frozen_edges(state), Sums.zero(state.step.shape)
    batch_size += -batch_size % mesh.size  # rounded up: every device gets equally many examples
    for batch in feed.evaluation_batches(batch_size):
        # The next batch is read while the devices compute; no more, because the memory is limited,
        # and because devices of a CPU can deadlock in two programs that do not need each other.
        jax.block_until_ready(sums)
        sums += evaluate_step(state, batch)
    jax.block_until_ready(sums)
    stop = agreed_stop(feed.error)
    if stop is not None:
        raise stop
    num_skipped = total(feed.skipped_test)
    skipped = {"skipped": num_skipped} if num_skipped else {}
    return [
        {**seed_sums.averages(), "num_examples": int(seed_sums.examples), **skipped}
        for seed_sums in unstack_seeds(devices.local(sums), state.step.size)
    ]
