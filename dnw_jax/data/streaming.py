"""Reads ImageNet while a run trains: Grain's worker processes decode batches ahead.

A batch is a pure function of the seed and the step. It does not depend on the number of workers
and hosts, or on where a run was resumed.
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
from dnw_jax.data.tfds_files import first_line, open_source
from dnw_jax.errors import UserError

# How many batches each worker decodes ahead.
_NUM_PREFETCHED = 2

# Added to (seed, position), so that augmentation and shuffle, which draws from (seed, epoch), use
# different random numbers.
_AUGMENTATION = 1

NumpyBatch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Photographs:
    """A split of encoded photographs.

    Attributes:
      dataset: the `dataset` section of a config.
      split: the name of the split in TFDS.
      source: the examples as TFDS returns them, by index; images are encoded.
    """

    dataset: ConfigDict
    split: str
    source: Any

    @classmethod
    def of(cls, dataset: ConfigDict, split: Literal["train", "test"]) -> "Photographs":
        """Opens a split.

        Args:
          dataset: the `dataset` section of a config.
          split: "train" or "test"; the test set is what TFDS calls "validation".

        Raises:
          UserError: fields contradict the data, a package is missing, or the files are missing or
            damaged.
        """
        check_fields(dataset)
        for module in ("cv2", "grain", "simplejpeg"):
            _check_installed(module)
        name = {"train": "train", "test": "validation"}[split]
        return cls(dataset, name, open_source(dataset, name))

    def __len__(self) -> int:
        return len(self.source)

    def train_batches(
        self, seed: int, batch_size: int, steps: range, rows: slice
    ) -> Generator[NumpyBatch]:
        """Yields the training batches of `steps`.

        Args:
          seed: of the shuffle and the augmentation.
          batch_size: examples of a batch, on all hosts together.
          steps: the numbers of the steps, from 0.
          rows: the part of each batch that this host decodes.

        Yields:
          `image` uint8 [rows, size, size, 3], augmented; `label` int32 [rows]; `skipped` int32 [],
          the number of damaged examples that other examples replace.
        """
        load = TrainBatch(self, seed, batch_size, rows)
        return _prefetched(load, steps, self.dataset.num_workers)

    def evaluation_batches(self, batch_size: int, rows: slice) -> Generator[NumpyBatch]:
        """Yields batches that hold every example once.

        Args:
          batch_size: examples of a batch, on all hosts together.
          rows: the part of each batch that this host decodes.

        Yields:
          `image`, not augmented, and `label` as in training; `mask` bool [rows], false for padding
          and for damaged examples; `skipped` int32 [], the number of damaged examples.
        """
        load = EvaluationBatch(self, batch_size, rows)
        numbers = range(steps_per_epoch(len(self), batch_size))
        return _prefetched(load, numbers, self.dataset.num_workers)

    def example(self, index: int, transform: Any) -> tuple[np.ndarray, int]:
        """Returns the transformed image and the label of one example.

        Args:
          index: of the example in the split.
          transform: takes the encoded image, returns an array.

        Raises:
          UserError: the example cannot be read or decoded. The message names the dataset, the
            split, the index and the file.
        """
        file_name = "?"
        try:
            example = self.source[index]
            file_name = example["file_name"].decode()
            return transform(example["image"]), int(example["label"])
        except Exception as error:  # ArrayRecord, TFDS, Pillow and OpenCV raise different ones
            raise UserError(
                f"{self.dataset.name} ({self.split}): example {index}, file {file_name}, cannot be "
                f"read ({first_line(error)}). Prepare the data again, or skip such examples: "
                "dataset.on_error='skip'"
            ) from error


@dataclass(frozen=True)
class TrainBatch:
    """Decodes the rows of a training batch that belong to this host. Workers receive it pickled."""

    photographs: Photographs
    seed: int
    batch_size: int
    rows: slice

    def __call__(self, step: int) -> NumpyBatch:
        """Returns the batch of `step`; see `Photographs.train_batches`."""
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
        """Image, label, and the number of damaged examples before it that were skipped."""
        dataset = self.photographs.dataset

        def transform(encoded: bytes) -> np.ndarray:
            rng = np.random.default_rng((self.seed, position, _AUGMENTATION))
            if dataset.random_resized_crop:
                image = training_image(encoded, dataset.image_size, rng)
            else:
                image = evaluation_image(encoded, dataset.image_size)
            return image[:, ::-1] if dataset.flip and rng.uniform() < 0.5 else image

        for skipped in range(len(self.photographs)):
            next_index = (index + skipped) % len(self.photographs)
            try:
                return *self.photographs.example(next_index, transform), skipped
            except UserError:
                if dataset.on_error != "skip":
                    raise
        raise UserError(f"{dataset.name} ({self.photographs.split}): no example can be read")


@dataclass(frozen=True)
class EvaluationBatch:
    """Decodes the rows of an evaluation batch that belong to this host."""

    photographs: Photographs
    batch_size: int
    rows: slice

    def __call__(self, number: int) -> NumpyBatch:
        """Returns batch `number`; see `Photographs.evaluation_batches`."""
        dataset = self.photographs.dataset
        size = dataset.image_size
        indices, mask = evaluation_indices(number, len(self.photographs), self.batch_size)
        indices, mask = indices[self.rows], mask[self.rows]
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


def _prefetched(
    load: TrainBatch | EvaluationBatch, numbers: range, num_workers: int | None
) -> Generator[NumpyBatch]:
    """Yields `load(number)` for each number, in order; worker processes compute them ahead.

    `num_workers` None starts one worker for each core; 0 uses threads of this process.
    """
    import grain  # noqa: PLC0415 (an extra, and slow to import)
    from absl import flags  # noqa: PLC0415

    if num_workers is None:
        num_workers = _num_cores()
    num_workers = min(num_workers, len(numbers))
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_NUM_PREFETCHED)
    if num_workers == 0:
        threads = grain.ReadOptions(num_threads=_num_cores(), prefetch_buffer_size=4)
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(load).to_iter_dataset(threads)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=_NUM_PREFETCHED)
        batches = batches.mp_prefetch(options, worker_init_fn=_prepare_worker)
    iterator = iter(batches)
    try:
        with _signals_blocked_in_workers():
            first = next(iterator, None)
        if first is not None:
            yield first
        yield from iterator
    finally:
        iterator.close()


@contextlib.contextmanager
def _signals_blocked_in_workers() -> Iterator[None]:
    """Inside this context, new processes block Ctrl-C and SIGTERM.

    A terminal sends them to the whole process group. The interrupted parent still needs its workers
    to finish and save; then it ends them.
    """
    _start_resource_tracker()
    original_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, original_mask)


def _start_resource_tracker() -> None:
    """Starts Python's resource tracker before the signals are blocked.

    Starting it later would unblock them. The tracker frees the shared memory that Grain leaves
    behind, and would warn about it.
    """
    ignore_warning = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(ignore_warning)  # the new process inherits these options
    resource_tracker.ensure_running()
    sys.warnoptions.remove(ignore_warning)


def _num_cores() -> int:
    """The number of cores that this process may use; a container has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare_worker(index: int, count: int) -> None:
    """Limits OpenCV to one thread, and ends the worker if the parent is killed."""
    import cv2  # noqa: PLC0415 (an extra)

    del index, count
    cv2.setNumThreads(1)
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()


def _exit_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(1)


def _check_installed(module: str) -> None:
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"dataset.name = 'imagenet2012': needs {module}. Install it:\n"
            "  pip install 'dnw-jax[imagenet]'"
        ) from error
