"""Where a run's batches come from: images on the devices, or photographs read during training.

A feed yields batches and does nothing else. The training loop does not know which feed it has.
"""

import contextlib
import functools
import itertools
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from dnw_jax import data
from dnw_jax.config import to_json
from dnw_jax.data.dataset_info import Statistics
from dnw_jax.platform import devices
from dnw_jax.platform.agreement import check_equal
from dnw_jax.step.programs import MAX_STEPS, IndexedBatches
from dnw_jax.step.state import Batch, total_steps


class Feed(Protocol):
    """Batches of a training and a test split.

    Attributes:
      reads_ahead: whether batches are read while the devices compute; the devices may then have to
        wait for one.
      skipped: damaged training examples that other examples replaced, since this start.
      skipped_test: damaged test examples in the last evaluation.
      error: why this host could read no further batch, or None. If other hosts wait for the rows
        of this one, the feed yields batches without examples, for which `make_updates` leaves the
        update out, until the caller asks the other hosts (`platform.agreement.agreed_stop`). Alone
        it stops yielding.
    """

    reads_ahead: bool
    skipped: int
    skipped_test: int
    error: Exception | None

    @property
    def num_examples(self) -> int:
        """Returns the number of training examples."""

    @property
    def fingerprint(self) -> bytes:
        """Returns a few bytes that differ if two hosts hold different examples."""

    def train_batches(self, step: int, count: int) -> Iterator[IndexedBatches | Batch]:
        """Yields the batches of the steps `step` (0-based) to `step + count - 1`.

        Every item is an argument of `step.programs.make_updates`. A batch is a pure function of
        the seed and the step. The caller should start the computation on an item before it asks
        for the next item: the next item is then read while the devices compute.
        """

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields every test example once: `image`, `label`, and `mask`, False for padding."""

    def close(self) -> None:
        """Stops reading ahead."""


def open_feed(config: ConfigDict, mesh: Mesh, *, train: bool = True) -> Feed:
    """Returns the feed of a config; if `train` is False, it serves only evaluation.

    Raises:
      UserError: the data are missing, damaged or contradict the config.
    """
    if config.dataset.name == "imagenet2012":
        return PhotographFeed.of(config, mesh, train=train)
    return DeviceFeed.of(config, mesh, train=train)


def check_same_run(config: ConfigDict, feed: Feed) -> None:
    """Checks that all processes have the same config and the same examples.

    Raises:
      UserError: names what differs, and in which processes.
    """
    if jax.process_count() > 1:
        check_equal(configuration=to_json(config).encode(), data=feed.fingerprint)


@dataclass
class DeviceFeed:
    """Images that are on the device: one item holds the batches of up to `MAX_STEPS` steps."""

    config: ConfigDict
    mesh: Mesh
    train: data.DeviceSplit | None
    test: data.DeviceSplit
    reads_ahead: bool = False
    skipped: int = 0
    skipped_test: int = 0
    error: Exception | None = None

    @classmethod
    def of(cls, config: ConfigDict, mesh: Mesh, *, train: bool) -> "DeviceFeed":
        """Reads the splits and copies them to the devices."""

        def split(name: Any) -> data.DeviceSplit:
            loaded = data.load_split(config.dataset, name)
            return devices.replicate(data.DeviceSplit.of(loaded, config.dataset), mesh)

        return cls(config, mesh, split("train") if train else None, split("test"))

    @property
    def num_examples(self) -> int:
        """See `Feed.num_examples`."""
        assert self.train is not None
        return len(self.train.labels)

    @property
    def fingerprint(self) -> bytes:
        """See `Feed.fingerprint`."""
        checksum = 0
        for array in jax.tree.leaves((self.train, self.test)):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return checksum.to_bytes(4, "big")

    def train_batches(self, step: int, count: int) -> Iterator[IndexedBatches]:
        """See `Feed.train_batches`."""
        assert self.train is not None
        for first in range(step, step + count, MAX_STEPS):
            steps = range(first, min(first + MAX_STEPS, step + count))
            yield IndexedBatches(self.train, self._indices(steps), len(steps))

    def _indices(self, steps: range) -> Array:
        """Returns int32 [MAX_STEPS, seeds, batch], without the seeds axis for one seed."""
        num_seeds, batch_size = self.config.num_seeds, self.config.batch_size
        indices = np.zeros((MAX_STEPS, num_seeds, batch_size), np.int32)
        for (row, step), seed in itertools.product(enumerate(steps), range(num_seeds)):
            indices[row, seed] = data.train_indices(
                self.config.seed + seed, step, self.num_examples, batch_size
            )
        if num_seeds == 1:
            indices = indices[:, 0]
        return devices.split_batch(jnp.asarray(indices), self.mesh, axis=indices.ndim - 1)

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """See `Feed.evaluation_batches`."""
        for batch in data.evaluation_batches(len(self.test.labels), batch_size):
            yield _evaluation_batch(self.test, *devices.split_batch(batch, self.mesh))

    def close(self) -> None:
        """See `Feed.close`; nothing is read ahead."""


@jax.jit
def _evaluation_batch(split: data.DeviceSplit, indices: Array, mask: Array) -> Batch:
    return split.evaluation_batch(indices, mask)


@dataclass
class PhotographFeed:
    """Photographs that are decoded while the devices compute: one item is the batch of one step.

    The steps of successive calls of `train_batches` must follow each other. A caller that stops
    after the first item can ask for the same steps again.
    """

    config: ConfigDict
    mesh: Mesh
    train: data.Photographs | None
    test: data.Photographs
    reads_ahead: bool = True
    skipped: int = 0
    skipped_test: int = 0
    error: Exception | None = None
    _reader: Generator[tuple[Batch, int]] | None = None
    _next: tuple[Batch, int] | None = None

    @classmethod
    def of(cls, config: ConfigDict, mesh: Mesh, *, train: bool) -> "PhotographFeed":
        """Opens the splits."""
        photographs = data.Photographs.of(config.dataset, "train") if train else None
        return cls(config, mesh, photographs, data.Photographs.of(config.dataset, "test"))

    @property
    def num_examples(self) -> int:
        """See `Feed.num_examples`."""
        assert self.train is not None
        return len(self.train)

    @property
    def fingerprint(self) -> bytes:
        """See `Feed.fingerprint`; only the numbers of examples, because reading takes hours."""
        splits = (self.train, self.test)
        return repr([None if split is None else len(split) for split in splits]).encode()

    def train_batches(self, step: int, count: int) -> Iterator[Batch]:
        """See `Feed.train_batches`."""
        batch_size = self.config.batch_size
        end = total_steps(self.config, data.steps_per_epoch(self.num_examples, batch_size))
        if self._reader is None:
            self._reader = self._read(range(step, end))
            self._next = next(self._reader, None)
        for _ in range(count):
            if self._next is None:  # an error
                return
            batch, skipped = self._next
            yield batch
            self.skipped += skipped
            self._next = next(self._reader, None)

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """See `Feed.evaluation_batches`."""
        rows = devices.rows_of_this_host(batch_size)
        self.skipped_test, self.error = 0, None
        batches = self.test.evaluation_batches(batch_size, rows)
        numbers = range(data.steps_per_epoch(len(self.test), batch_size))
        for batch in self._with_placeholders(batches, numbers, rows):
            on_devices, skipped = self._to_devices(batch)
            self.skipped_test += skipped
            yield on_devices

    def close(self) -> None:
        """See `Feed.close`."""
        if self._reader is not None:
            self._reader.close()

    def _read(self, steps: range) -> Generator[tuple[Batch, int]]:
        """Yields each batch, on the devices, and its number of skipped examples."""
        assert self.train is not None
        batch_size = self.config.batch_size
        rows = devices.rows_of_this_host(batch_size)
        batches = self.train.train_batches(self.config.seed, batch_size, steps, rows)
        yield from map(self._to_devices, self._with_placeholders(batches, steps, rows))

    def _with_placeholders(
        self, batches: Generator[data.NumpyBatch], numbers: range, rows: slice
    ) -> Generator[data.NumpyBatch]:
        """Yields `batches`, one for each of `numbers`. After an error it does as `error` says.

        With other hosts, `mask` is False for the rows of a placeholder.
        """
        num_rows, several_hosts = rows.stop - rows.start, jax.process_count() > 1
        num_read = 0
        with contextlib.closing(batches):
            try:
                for batch in batches:
                    yield {"mask": np.ones(num_rows, bool)} | batch if several_hosts else batch
                    num_read += 1
            except Exception as error:
                self.error = error
        if self.error is not None and several_hosts:
            size = self.config.dataset.image_size
            placeholder = {
                "image": np.zeros((num_rows, size, size, 3), np.uint8),
                "label": np.zeros(num_rows, np.int32),
                "mask": np.zeros(num_rows, bool),
                "skipped": np.zeros((), np.int32),
            }
            yield from itertools.repeat(placeholder, len(numbers) - num_read)

    def _to_devices(self, batch: data.NumpyBatch) -> tuple[Batch, int]:
        # Copies: the arrays are memory shared with the workers, who need it back when they end.
        rows = {name: np.array(array) for name, array in batch.items() if name != "skipped"}
        statistics = data.STATISTICS[self.config.dataset.name]
        batch_on_devices = devices.batch_of_hosts(rows, self.mesh)
        return _normalised(batch_on_devices, statistics), int(batch["skipped"])


@functools.partial(jax.jit, static_argnums=1)
def _normalised(batch: Batch, statistics: Statistics) -> Batch:
    return {**batch, "image": data.normalise(batch["image"], *statistics)}
