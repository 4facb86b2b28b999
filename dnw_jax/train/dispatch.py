"""A dispatch makes several updates at once; a measurement at the start determines how many."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from dnw_jax.platform.agreement import from_first
from dnw_jax.step.metrics import Sums
from dnw_jax.step.programs import MAX_STEPS, make_updates
from dnw_jax.step.state import TrainState
from dnw_jax.train.feed import Feed

# The time that one dispatch computes. Ctrl-C takes effect between dispatches and must do so within
# 3 seconds. The host's work for a dispatch, a few milliseconds, is small beside it.
SECONDS_PER_DISPATCH = 2.0

# One measurement is not enough: the first step after compiling is slower than the following steps.
_NUM_MEASUREMENTS = 2


@dataclass
class Dispatches:
    """Makes the updates of a run and measures how long they take.

    The first dispatch makes one step. Its time determines the size of the second dispatch, whose
    time determines the size of all later dispatches. The clock of each host measures another time,
    so all hosts use the size of process 0 (`agreed_size`): they must make equally many steps in a
    dispatch, or one waits for ever for the others.

    Attributes:
      feed: yields the batches.
      clock: returns the time in seconds.
      size: how many steps the next dispatch makes at most; the same number on every host.
      seconds: time that the updates took since the last `reset_clock`.
      waited: the part of `seconds` in which the devices had nothing to do but wait for a batch.
    """

    feed: Feed
    clock: Callable[[], float] = time.perf_counter
    size: int = 1
    seconds: float = 0.0
    waited: float = 0.0
    _measured: int = 0

    def compile(self, state: TrainState, sums: Sums, step: int) -> None:
        """Compiles the program and reads the first batch, so that neither is timed.

        `jax.jit` finds the compiled program when `make_updates` is called.
        """
        batch = next(self.feed.train_batches(step, 1), None)
        if batch is not None:
            make_updates.lower(state, sums, batch).compile()

    def reset_clock(self) -> None:
        """Starts to measure `seconds` and `waited` from zero."""
        self.seconds = self.waited = 0.0

    def advance(
        self, state: TrainState, sums: Sums, step: int, stop: int
    ) -> tuple[TrainState, Sums, int]:
        """Makes the updates of one dispatch, at most up to step `stop`, and waits for them.

        Args:
          state: is donated (`make_updates`).
          sums: of the examples so far.
          step: updates made so far.
          stop: the largest number of updates made after the dispatch.

        Returns:
          The new state, the new sums, and the number of updates made so far; after an error of the
          feed it can be smaller than the dispatch should have reached.
        """
        count = min(self.size, stop - step)
        started = self.clock()
        batches = self.feed.train_batches(step, count)
        batch = next(batches, None)
        while batch is not None:
            state, sums = make_updates(state, sums, batch)
            reading = self.clock()
            batch = next(batches, None)  # while the devices compute
            if sums.loss.is_ready():  # type: ignore[attr-defined]
                self.waited += self.clock() - reading
        jax.block_until_ready(sums)
        seconds = self.clock() - started
        self.seconds += seconds
        if self._measured < _NUM_MEASUREMENTS:
            self._measured += 1
            self.size = agreed_size(seconds / count)
        return state, sums, int(np.max(state.step))


def agreed_size(seconds_per_step: float) -> int:
    """Returns the number of steps of a dispatch by the clock of process 0, on every host.

    Every process must call this at the same point of the run. A single process sends nothing.

    Args:
      seconds_per_step: measured by this process; ignored unless this is process 0.
    """
    size = size_within(SECONDS_PER_DISPATCH, seconds_per_step)
    return int(from_first(np.int32(size)))


def size_within(seconds: float, seconds_per_step: float) -> int:
    """Returns how many steps fit into `seconds`: at least 1, at most MAX_STEPS."""
    return min(max(int(seconds / max(seconds_per_step, 1e-6)), 1), MAX_STEPS)
