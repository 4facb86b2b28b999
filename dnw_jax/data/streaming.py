"""ImageNet, read and decoded as it is needed by Grain's worker processes.

A batch is a pure function of the seed and the step: workers, hosts and resumption change nothing.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict

from dnw_jax.data.batches import evaluation_indices, steps_per_epoch, train_indices
from dnw_jax.data.dataset_info import check_fields
from dnw_jax.data.photographs import evaluation_image, training_image
from dnw_jax.data.prepared import open_source, reason
from dnw_jax.errors import UserError

# What is ready before it is asked for, in batches of each worker.
_READY = 2

_AUGMENTATION = 1

HostBatch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Photographs:
    """A split of encoded photographs.

    Attributes:
      dataset: the `dataset` section of a config.
      split: as TFDS names it.
      source: TFDS's examples by number.
    """

    dataset: ConfigDict
    split: str
    source: Any

    @classmethod
    def of(cls, dataset: ConfigDict, split: Literal["train", "test"]) -> "Photographs":
        """Opens a split. Raises UserError as `load_split` does."""
        check_fields(dataset)
        for module in ("cv2", "grain", "simplejpeg"):
            _check_installed(module)
        name = {"train": "train", "test": "validation"}[split]
        return cls(dataset, name, open_source(dataset, name))

    def __len__(self) -> int:
        return len(self.source)

    def train_batches(
        self, seed: int, batch_size: int, steps: range, rows: slice
    ) -> Generator[HostBatch]:
        """The batches of these steps.

        `rows` are those of each batch that this host makes. A batch holds `image`, uint8 [rows,
        size, size, 3], augmented; `label`, int32 [rows]; and `skipped`, the number of damaged
        examples that others stand for.
        """
        load = TrainBatch(self, seed, batch_size, rows)
        return _read_ahead(load, steps, self.dataset.num_workers)

    def evaluation_batches(self, batch_size: int, rows: slice) -> Generator[HostBatch]:
        """Every example once. A batch holds `image` and `label` as in training, and `mask`.

        The mask, bool [rows], is false for padding and for damaged examples (`skipped` of them).
        """
        load = EvaluationBatch(self, batch_size, rows)
        numbers = range(steps_per_epoch(len(self), batch_size))
        return _read_ahead(load, numbers, self.dataset.num_workers)

    def example(self, index: int, transform: Any) -> tuple[np.ndarray, int]:
        """The transformed image and the label of one example.

        Raises:
          UserError: it cannot be read or decoded; names the dataset, split, index and file.
        """
        file_name = "?"
        try:
            example = self.source[index]
            file_name = example["file_name"].decode()
            return transform(example["image"]), int(example["label"])
        except Exception as error:  # of ArrayRecord, TFDS, Pillow and OpenCV
            raise UserError(
                f"{self.dataset.name} ({self.split}): example {index}, file {file_name}, cannot be "
                f"read ({reason(error)}). Prepare the data anew, or go on without it: "
                "dataset.on_error='skip'."
            ) from error


@dataclass(frozen=True)
class TrainBatch:
    """Makes a host's rows of the batch of a step."""

    photographs: Photographs
    seed: int
    batch_size: int
    rows: slice

    def __call__(self, step: int) -> HostBatch:
        """The batch of `step`."""
        indices = train_indices(self.seed, step, len(self.photographs), self.batch_size)
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        examples = [
            self._example(int(index), position)
            for index, position in zip(indices[self.rows], positions[self.rows], strict=True)
        ]
        images, labels, skipped = zip(*examples, strict=True)
        return {
            "image": np.stack(images),
            "label": np.array(labels, np.int32),
            "skipped": np.array(sum(skipped), np.int32),
        }

    def _example(self, index: int, position: int) -> tuple[np.ndarray, int, int]:
        """Image, label, and how many damaged examples were passed over for it."""
        dataset = self.photographs.dataset

        def transform(encoded: bytes) -> np.ndarray:
            # The shuffle draws from (seed, epoch).
            rng = np.random.default_rng((self.seed, position, _AUGMENTATION))
            if dataset.random_resized_crop:
                image = training_image(encoded, dataset.image_size, rng)
            else:
                image = evaluation_image(encoded, dataset.image_size)
            return image[:, ::-1] if dataset.flip and rng.uniform() < 0.5 else image

        for skipped in range(len(self.photographs)):
            try:
                place = (index + skipped) % len(self.photographs)
                return *self.photographs.example(place, transform), skipped
            except UserError:
                if dataset.on_error != "skip":
                    raise
        raise UserError(f"{dataset.name} ({self.photographs.split}): no example can be read")


@dataclass(frozen=True)
class EvaluationBatch:
    """Makes a host's rows of a batch of the evaluation."""

    photographs: Photographs
    batch_size: int
    rows: slice

    def __call__(self, number: int) -> HostBatch:
        """Batch `number`: examples `number * batch_size` and following."""
        dataset = self.photographs.dataset
        size = dataset.image_size
        indices, mask = (
            each[self.rows]
            for each in evaluation_indices(number, len(self.photographs), self.batch_size)
        )
        images = np.zeros((len(indices), size, size, 3), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        skipped = 0
        for row in np.flatnonzero(mask):
            try:
                images[row], labels[row] = self.photographs.example(
                    int(indices[row]), lambda encoded: evaluation_image(encoded, size)
                )
            except UserError:
                if dataset.on_error != "skip":
                    raise
                mask[row] = False
                skipped += 1
        return {
            "image": images,
            "label": labels,
            "mask": mask,
            "skipped": np.array(skipped, np.int32),
        }


def _read_ahead(
    load: TrainBatch | EvaluationBatch, numbers: range, num_workers: int | None
) -> Generator[HostBatch]:
    """`load` of the numbers, in order, by worker processes that work ahead.

    `num_workers` None: one for each core; 0: threads of this process.
    """
    import grain  # noqa: PLC0415 (an extra, and slow to import)
    from absl import flags  # noqa: PLC0415

    if num_workers is None:
        num_workers = _num_cores()
    num_workers = min(num_workers, len(numbers))
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READY)
    if num_workers == 0:
        threads = grain.ReadOptions(num_threads=_num_cores(), prefetch_buffer_size=4)
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(load).to_iter_dataset(threads)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read theirs
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=_READY)
        batches = batches.mp_prefetch(options, worker_init_fn=_prepare_worker)
    iterator = iter(batches)
    try:
        with _signals_kept_from_workers():
            first = next(iterator, None)
        if first is not None:
            yield first
        yield from iterator
    finally:
        iterator.close()


@contextlib.contextmanager
def _signals_kept_from_workers() -> Iterator[None]:
    """Processes that start in here never see Ctrl-C or SIGTERM, which may go to a whole group.

    The parent saves when it is interrupted, and needs its workers for that; it ends them.
    """
    _start_resource_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Starts it before the signals are blocked: its start would unblock them.

    It frees what shared memory Grain leaves when it ends; a warning about that helps nobody.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # processes are started with these
    resource_tracker.ensure_running()
    sys.warnoptions.remove(quiet)


def _num_cores() -> int:
    """That this process may use: in a container fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare_worker(index: int, count: int) -> None:
    """One thread for the decoder; an end when the parent was killed."""
    import cv2  # noqa: PLC0415 (an extra)

    del index, count
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _check_installed(module: str) -> None:
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"dataset.name='imagenet2012' needs {module}. Install it:\n"
            "  pip install 'dnw-jax[imagenet]'"
        ) from error
