"""The examples of each batch, as pure functions of the seed and the step.

Training sees one endless sequence of examples: epoch after epoch, each a permutation of the
dataset. The sequence is cut into full batches, so a batch may contain the end of one epoch and the
start of the next, or several epochs if it is larger than the dataset. To resume a run, the number
of the step is enough.
"""

import functools
from collections.abc import Iterator

import numpy as np


def train_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Returns the examples of training step `step` (from 0): int32 [batch_size]."""
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, positions_in_epoch = np.divmod(positions, num_examples)
    return np.concatenate(
        [
            _permutation(seed, epoch, num_examples)[positions_in_epoch[epochs == epoch]]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
    )


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns num_examples / batch_size, rounded up: so many steps see every example."""
    return -(-num_examples // batch_size)


def evaluation_batches(
    num_examples: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the batches of an evaluation, which cover each example exactly once.

    Each is (indices int32 [batch_size], mask bool [batch_size]), as `evaluation_indices` returns
    it.
    """
    for number in range(steps_per_epoch(num_examples, batch_size)):
        yield evaluation_indices(number, num_examples, batch_size)


def evaluation_indices(
    number: int, num_examples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns batch `number` of an evaluation.

    Returns:
      (indices int32 [batch_size], mask bool [batch_size]). The last batch is padded with example
      0; the mask is false there.
    """
    indices = np.arange(number * batch_size, (number + 1) * batch_size)
    mask = indices < num_examples
    return np.where(mask, indices, 0).astype(np.int32), mask


# Enough for five seeds, each with two epochs in one batch, and two more epochs for a caller that
# prefetches.
@functools.lru_cache(maxsize=12)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of the examples in one epoch: int32 [num_examples]."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
