"""Where a run's batches come from: images on the device already, or photographs read meanwhile.

Both make updates and evaluation batches; the loop does not know which it has.
"""

import contextlib
import functools
import itertools
import time
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
from dnw_jax.data.dataset_info import Statistics
from dnw_jax.platform import devices
from dnw_jax.step.metrics import Sums
from dnw_jax.step.programs import train_on, train_steps
from dnw_jax.step.state import TrainState

# Steps that one program is made for; it makes any smaller number too.
MAX_STEPS = 128

Batch = dict[str, Array]


class Feed(Protocol):
    """Batches of a training and a test split.

    Attributes:
      skipped: damaged training examples that others stood for, since this start.
      skipped_test: damaged test examples in the last evaluation.
      waited: seconds, at most, in which the devices had nothing to do but wait for a batch; None
        where there is nothing to wait for.
    """

    skipped: int
    skipped_test: int
    waited: float | None

    @property
    def num_examples(self) -> int:
        """Training examples."""

    def advance(
        self, state: TrainState, sums: Sums, step: int, count: int
    ) -> tuple[TrainState, Sums]:
        """`count` updates from `step` on; their examples join `sums`. Consumes the state."""

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every test example once: `image`, `label`, and `mask`, false for padding."""

    def close(self) -> None:
        """Stops reading ahead."""


def open_feed(config: ConfigDict, mesh: Mesh, *, train: bool = True) -> Feed:
    """The feed of a config; without `train` for evaluation alone.

    Raises:
      UserError: the data are missing, damaged or not what the config says.
    """
    if config.dataset.name == "imagenet2012":
        return PhotographFeed.of(config, mesh, train=train)
    return ImageFeed.of(config, mesh, train=train)


@dataclass
class ImageFeed:
    """Images that live on the device: many updates are one program."""

    config: ConfigDict
    mesh: Mesh
    train: data.DeviceSplit | None
    test: data.DeviceSplit
    skipped: int = 0
    skipped_test: int = 0
    waited: float | None = None

    @classmethod
    def of(cls, config: ConfigDict, mesh: Mesh, *, train: bool) -> "ImageFeed":
        """Reads the splits."""

        def split(name: Any) -> data.DeviceSplit:
            loaded = data.load_split(config.dataset, name)
            return devices.replicate(data.DeviceSplit.of(loaded, config.dataset), mesh)

        return cls(config, mesh, split("train") if train else None, split("test"))

    @property
    def num_examples(self) -> int:
        """Training examples."""
        assert self.train is not None
        return len(self.train.labels)

    def advance(
        self, state: TrainState, sums: Sums, step: int, count: int
    ) -> tuple[TrainState, Sums]:
        """As `Feed.advance`."""
        assert self.train is not None
        seeds, batch_size = range(self.config.num_seeds), self.config.batch_size
        indices = np.zeros((MAX_STEPS, len(seeds), batch_size), np.int32)
        for index, row in itertools.product(seeds, range(count)):
            seed = self.config.seed + index
            indices[row, index] = data.train_indices(
                seed, step + row, self.num_examples, batch_size
            )
        if len(seeds) == 1:
            indices = indices[:, 0]
        spread = devices.split_batch(jnp.asarray(indices), self.mesh, axis=indices.ndim - 1)
        return train_steps(state, sums, self.train, spread, count)

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """As `Feed.evaluation_batches`."""
        for batch in data.evaluation_batches(len(self.test.labels), batch_size):
            yield _evaluation_batch(self.test, *devices.split_batch(batch, self.mesh))

    def close(self) -> None:
        """Nothing to stop."""


@jax.jit
def _evaluation_batch(split: data.DeviceSplit, indices: Array, mask: Array) -> Batch:
    return split.evaluation_batch(indices, mask)


@dataclass
class PhotographFeed:
    """Photographs that are decoded while the device computes: each update is one dispatch."""

    config: ConfigDict
    mesh: Mesh
    train: data.Photographs | None
    test: data.Photographs
    skipped: int = 0
    skipped_test: int = 0
    waited: float | None = 0.0
    _reader: Generator[tuple[Batch, int]] | None = None
    _ready: tuple[Batch, int] | None = None
    _program: Any = None

    @classmethod
    def of(cls, config: ConfigDict, mesh: Mesh, *, train: bool) -> "PhotographFeed":
        """Opens the splits."""
        photographs = data.Photographs.of(config.dataset, "train") if train else None
        return cls(config, mesh, photographs, data.Photographs.of(config.dataset, "test"))

    @property
    def num_examples(self) -> int:
        """Training examples."""
        assert self.train is not None
        return len(self.train)

    def advance(
        self, state: TrainState, sums: Sums, step: int, count: int
    ) -> tuple[TrainState, Sums]:
        """As `Feed.advance`; the steps follow each other. The first call compiles."""
        if self._reader is None:
            self._reader = self._batches(range(step, state.total_steps))
            self._ready = next(self._reader)
            self._program = train_on.lower(state, sums, self._ready[0]).compile()
        assert self.waited is not None
        for done in range(step + 1, step + count + 1):
            assert self._ready is not None
            batch, skipped = self._ready
            state, sums = self._program(state, sums, batch)
            self.skipped += skipped
            if done < state.total_steps:
                # While the devices compute.
                started = time.perf_counter()
                self._ready = next(self._reader)
                if sums.loss.is_ready():  # type: ignore[attr-defined]
                    self.waited += time.perf_counter() - started
        return state, sums

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """As `Feed.evaluation_batches`."""
        rows = devices.rows_of_this_host(batch_size)
        self.skipped_test = 0
        for batch in self.test.evaluation_batches(batch_size, rows):
            on_devices, skipped = self._to_devices(batch)
            self.skipped_test += skipped
            yield on_devices

    def close(self) -> None:
        """As `Feed.close`."""
        if self._reader is not None:
            self._reader.close()

    def _batches(self, steps: range) -> Generator[tuple[Batch, int]]:
        """Batches on the devices, and `skipped` of each."""
        assert self.train is not None
        batch_size = self.config.batch_size
        rows = devices.rows_of_this_host(batch_size)
        batches = self.train.train_batches(self.config.seed, batch_size, steps, rows)
        with contextlib.closing(batches):
            yield from map(self._to_devices, batches)

    def _to_devices(self, batch: data.NumpyBatch) -> tuple[Batch, int]:
        # Copies: the arrays are shared memory, which the workers' end must find unused.
        rows = {name: np.array(array) for name, array in batch.items() if name != "skipped"}
        statistics = data.STATISTICS[self.config.dataset.name]
        batch_on_devices = devices.batch_of_hosts(rows, self.mesh)
        return _normalised(batch_on_devices, statistics), int(batch["skipped"])


@functools.partial(jax.jit, static_argnums=1)
def _normalised(batch: Batch, statistics: Statistics) -> Batch:
    return {**batch, "image": data.normalise(batch["image"], *statistics)}
