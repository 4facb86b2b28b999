"""Evaluation over every test example."""

from jax.sharding import Mesh

from dnw_jax.step.metrics import Sums
from dnw_jax.step.state import TrainState, evaluate_step, with_frozen_edges
from dnw_jax.train import seeds
from dnw_jax.train.feed import Feed


def evaluate_all(
    state: TrainState, feed: Feed, batch_size: int, mesh: Mesh
) -> list[dict[str, float]]:
    """Of each seed averages over every test example and `num_examples`, whatever the batch size."""
    state, sums = with_frozen_edges(state), Sums.zero(state.step.shape)
    batch_size += -batch_size % mesh.size  # the padding fills up what does not split evenly
    for batch in feed.evaluation_batches(batch_size):
        sums += evaluate_step(state, batch)
    skipped = {"skipped": feed.skipped_test} if feed.skipped_test else {}
    return [
        {**own.averages(), "num_examples": int(own.examples), **skipped}
        for own in seeds.unstack_seeds(sums, state.step.size)
    ]
