"""Writes metrics and pictures to TensorBoard and `metrics.jsonl`, and progress to the console."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from dnw_jax.platform.agreement import is_first
from dnw_jax.run.workdir import METRICS, TENSORBOARD, WIRING_PICTURES, write_text


class Writer:
    """Writes the metrics and pictures of a run into its workdir. A context manager.

    Everything is on disk when a method returns. Only process 0 writes; in the other processes the
    methods do nothing.

    Args:
      workdir: of the run.
      step: the step from which the run starts or resumes. Everything that an interrupted run wrote
        for later steps is deleted.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._files = contextlib.ExitStack()
        if not is_first():
            return
        self._pictures, tensorboard = workdir / WIRING_PICTURES, workdir / TENSORBOARD
        for folder in (self._pictures, tensorboard):
            folder.mkdir(parents=True, exist_ok=True)
        rows_path = workdir / METRICS
        _drop_rows_after(rows_path, step)
        _drop_pictures_after(self._pictures, step)
        self._rows = self._files.enter_context(rows_path.open("a", buffering=1))
        # Not tensorboardX's SummaryWriter: it writes in a thread, so a kill loses the last seconds,
        # and an interrupt can make it wait for ever.
        self._events = EventsWriter(str(tensorboard / "events"), f".{step}")
        self._files.callback(self._events.close)
        # Purges TensorBoard events after the step from which the run resumes.
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Writes one row of `metrics.jsonl`, and a point of the curve `split/name` for each value.

        Args:
          step: updates made so far.
          epoch: the same in epochs.
          split: "train" or "test".
          values: metric name -> value.
        """
        if not is_first():
            return
        row = {"step": step, "epoch": round(epoch, 4), "split": split, **values}
        self._rows.write(json.dumps(row) + "\n")
        curves = [
            Summary.Value(tag=f"{split}/{name}", simple_value=value)
            for name, value in values.items()
        ]
        self._event(step, summary=Summary(value=curves))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [height, width, 3], as a PNG file and to TensorBoard."""
        if not is_first():
            return
        path = self._pictures / f"{name}_{step:08d}.png"
        Image.fromarray(picture).save(path)
        height, width, _ = picture.shape
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = Summary.Value(tag=f"wiring/{name}", image=image)
        self._event(step, summary=Summary(value=[value]))

    def _event(self, step: int, **content: Summary | SessionLog) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
        self._events.flush()


def _drop_rows_after(path: Path, step: int) -> None:
    """Deletes rows after `step`, and incomplete rows, which a kill can leave."""
    if path.exists():
        lines = path.read_text().splitlines()
        write_text(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


def _drop_pictures_after(folder: Path, step: int) -> None:
    for path in folder.glob("*_*.png"):
        digits = path.stem.rpartition("_")[2]
        if digits.isdecimal() and int(digits) > step:
            path.unlink()


class Progress:
    """Shows a progress bar with images/s and time left; without a terminal it prints lines instead.

    A context manager.

    Args:
      total_steps: updates of the whole run.
      step: updates made so far.
      batch_size: images in one update.
    """

    def __init__(self, total_steps: int, step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=step * batch_size,
            unit="img",
            unit_scale=True,
            smoothing=0.1,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
            disable=None if is_first() else True,  # None: no bar unless stderr is a terminal
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self) -> None:
        """Starts the clock of images/s, so that compiling does not count."""
        self._bar.unpause()

    def advance(self, steps: int, note: str) -> None:
        """Moves the bar by `steps` updates and shows `note` beside it."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(steps * self._batch_size)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def log(self, text: str) -> None:
        """Prints a line if there is no bar."""
        if self._bar.disable:
            self.line(text)
