"""A `jax.profiler` trace of some steps of a run."""

from dataclasses import dataclass
from pathlib import Path

import jax

from dnw_jax.platform.agreement import is_first
from dnw_jax.train.plan import Plan


@dataclass
class Trace:
    """Traces the steps of `profile_steps` into `folder`, where TensorBoard finds them.

    Process 0 alone traces: all processes do the same.
    """

    plan: Plan
    folder: Path
    _running: bool = False

    def at(self, step: int) -> None:
        """Starts or stops the trace if it begins or ends after `step` updates."""
        first, last = self.plan.trace or (None, None)
        if step == first and step < self.plan.total and is_first():
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        elif step == last:
            self.stop()

    def stop(self) -> None:
        """Stops the trace if it is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
