"""Which examples make up a batch: pure functions of the seed and the step.

Training shuffles, repeats, then batches: the run is one endless sequence, epoch after epoch, each
a permutation of the examples, cut into full batches. So a batch may straddle two epochs, or hold
several where it is larger than the dataset, and a resume needs nothing but the step.
"""

import functools
from collections.abc import Iterator

import numpy as np


def train_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """int32 [batch_size]: the examples that training step `step` (from 0) sees."""
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, places = np.divmod(positions, num_examples)
    return np.concatenate(
        [
            _permutation(seed, epoch, num_examples)[places[epochs == epoch]]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
    )


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of steps that see every example at least once."""
    return -(-num_examples // batch_size)


def evaluation_batches(
    num_examples: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices int32 [batch_size], mask bool [batch_size]): each example exactly once."""
    for number in range(steps_per_epoch(num_examples, batch_size)):
        yield evaluation_indices(number, num_examples, batch_size)


def evaluation_indices(
    number: int, num_examples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batch `number` of the evaluation: (indices int32 [batch_size], mask bool [batch_size]).

    The last batch is filled up with example 0, where the mask is False.
    """
    indices = np.arange(number * batch_size, (number + 1) * batch_size)
    mask = indices < num_examples
    return np.where(mask, indices, 0).astype(np.int32), mask


# Two epochs meet in a batch, of each of five seeds; two more are for a caller that works ahead.
@functools.lru_cache(maxsize=12)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """int32 [num_examples]: the order of the examples in one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
