"""Times workers in turn, A B A B ... Each worker is a process that waits while the others run."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timing:
    """The seconds of each turn of one worker."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Returns the median of the turns."""
        return median(self.seconds)

    def __str__(self) -> str:
        summary = self.median, min(self.seconds), max(self.seconds)
        middle, least, most = map(format_seconds, summary)
        return f"{middle} ({least} .. {most})"


def format_seconds(seconds: float) -> str:
    """Returns a time with three digits and its unit, s or ms."""
    return f"{seconds:.2f} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def alternate(
    commands: Mapping[str, Sequence[str]], turns: int, warm_up: int = 2
) -> dict[str, Timing]:
    """Times a step of each command in turn.

    Args:
      commands: command lines by name. Each runs a script that ends in `serve(step)`.
      turns: timed turns of each command.
      warm_up: turns before these, not timed.

    Raises:
      RuntimeError: a worker stopped.
    """
    workers = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for turn in range(warm_up + turns):
            for name, worker in workers.items():
                elapsed = _take_turn(name, worker)
                if turn >= warm_up:
                    seconds[name].append(elapsed)
    finally:
        for worker in workers.values():
            worker.kill()
            with contextlib.suppress(BrokenPipeError):
                worker.communicate()  # closes the pipes
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def _take_turn(name: str, worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # the worker has stopped; the last line reports it
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for line in worker.stdout:  # libraries may print other lines
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise RuntimeError(f"the worker {name!r} stopped; its error is printed above")


def serve(step: Callable[[], object], steps_per_call: int = 1) -> None:
    """Serves requests of `alternate` until killed: calls `step` twice and times the second call.

    The first call after another worker's turn waits for memory that the system gave to that worker,
    for up to half of its time. No step of a training run waits so.

    Args:
      step: the function to time.
      steps_per_call: steps that one call of `step` makes. The printed time is that of one step.
    """
    for _ in sys.stdin:
        step()
        start = time.perf_counter()
        step()
        print(f"seconds {(time.perf_counter() - start) / steps_per_call}", flush=True)
