"""Times workers in turn, A B A B ..., each a process of its own that waits while others run."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timing:
    """Seconds of one worker's turns."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle turn."""
        return median(self.seconds)

    def __str__(self) -> str:
        middle, least, most = map(format_seconds, (self.median, *self._range()))
        return f"{middle} ({least} .. {most})"

    def _range(self) -> tuple[float, float]:
        return min(self.seconds), max(self.seconds)


def format_seconds(seconds: float) -> str:
    """With three digits, in s or ms."""
    return f"{seconds:.2f} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def alternate(
    commands: Mapping[str, Sequence[str]], turns: int, warm_up: int = 2
) -> dict[str, Timing]:
    """Seconds of a step in `turns` turns of each command, after `warm_up` uncounted turns.

    A command runs a script that ends in `serve(step)`.
    """
    workers = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for turn in range(warm_up + turns):
            for name, worker in workers.items():
                elapsed = _one_turn(name, worker)
                if turn >= warm_up:
                    seconds[name].append(elapsed)
    finally:
        for worker in workers.values():
            worker.kill()
            with contextlib.suppress(BrokenPipeError):
                worker.communicate()  # which closes the pipes
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def _one_turn(name: str, worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # then it has stopped: see below
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for line in worker.stdout:  # a library may print, too
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise RuntimeError(f"the worker {name!r} stopped: see what it printed above")


def serve(step: Callable[[], object], steps_in_one: int = 1) -> None:
    """In a worker: makes two steps and tells the seconds of the second one whenever it is asked to.

    The first one after another's turn pays for memory that the system has given to that one, up to
    half its time; in training no step does. Where `step` makes `steps_in_one` steps, the seconds
    are those of one of them. Until killed.
    """
    for _ in sys.stdin:
        step()
        start = time.perf_counter()
        step()
        print(f"seconds {(time.perf_counter() - start) / steps_in_one}", flush=True)
