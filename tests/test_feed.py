"""Feeds: batches in the order of the steps, one ahead where they are read, none after the end."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from small_runs import small_config

from dnw_jax import data
from dnw_jax.platform import devices
from dnw_jax.step.programs import MAX_STEPS
from dnw_jax.train.feed import DeviceFeed, PhotographFeed


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_images_on_the_device(num_seeds: int) -> None:
    config = small_config(num_seeds=str(num_seeds), seed="3")
    feed = DeviceFeed.of(config, devices.data_mesh(), train=True)
    items = list(feed.train_batches(5, 2 * MAX_STEPS + 10))
    assert [item.count for item in items] == [MAX_STEPS, MAX_STEPS, 10]
    shape = (MAX_STEPS, 32) if num_seeds == 1 else (MAX_STEPS, num_seeds, 32)
    assert all(item.indices.shape == shape for item in items)
    for item, row, step in ((0, 0, 5), (0, 7, 12), (2, 9, 5 + 2 * MAX_STEPS + 9)):
        for seed in range(num_seeds):
            expected = data.train_indices(3 + seed, step, feed.num_examples, 32)
            indices = items[item].indices[row] if num_seeds == 1 else items[item].indices[row, seed]
            np.testing.assert_array_equal(indices, expected)


class FakePhotographs:
    """Batches whose labels are the number of the step; each stands for one skipped example."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 8

    def train_batches(
        self, seed: int, batch_size: int, steps: range, rows: slice
    ) -> Iterator[data.NumpyBatch]:
        del seed
        assert rows == slice(0, batch_size)
        for step in steps:
            self.read.append(step)
            images = np.zeros((batch_size, 2, 2, 3), np.uint8)
            labels = np.full(batch_size, step, np.int32)
            yield {"image": images, "label": labels, "skipped": np.int32(1)}


def test_photographs_are_read_one_batch_ahead() -> None:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 4,
            "num_epochs": 3,  # of two steps each
            "num_steps": None,
            "dataset": {"name": "imagenet2012"},
        }
    )
    photographs: Any = FakePhotographs()
    feed = PhotographFeed(config, devices.data_mesh(), photographs, photographs)

    def steps_of(step: int, count: int) -> list[int]:
        return [int(batch["label"][0]) for batch in feed.train_batches(step, count)]

    first = next(feed.train_batches(2, 1))
    assert set(first) == {"image", "label"}
    assert (int(first["label"][0]), photographs.read, feed.skipped) == (2, [2], 0)
    assert steps_of(2, 2) == [2, 3]  # the first batch again
    assert (photographs.read, feed.skipped) == ([2, 3, 4], 2)
    assert steps_of(4, 2) == [4, 5]
    assert (photographs.read, feed.skipped) == ([2, 3, 4, 5], 4)
    feed.close()
