"""Ends one of two processes of a run in several ways, and looks at what the other one does."""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.hosts import saved
from experiments.hosts.launch import Run, complete

HOSTS = 2
# The issue of a fault must be clear within so many seconds.
SECONDS_TO_SAVE = 60.0
SECONDS_TO_END = 120.0
_STARTED = "compiling the first takes a while"


@dataclass(frozen=True)
class Fault:
    """What happened after a fault.

    Attributes:
      name: of the fault.
      exit_codes: of the processes; negative numbers of signals; None for one that did not end.
      seconds: from the fault until both processes had ended.
      steps: of the checkpoints then.
      resumed: whether the run that was started again ends with the bits of an uninterrupted one;
        None if there was nothing to resume.
      holds: whether all of this is as documented.
      message: the last line that the other process printed to stderr.
    """

    name: str
    exit_codes: list[int | None]
    seconds: float
    steps: list[int]
    resumed: bool | None
    holds: bool
    message: str


def terminate(flags: Sequence[str], workdir: Path, moment: float | None, host: int) -> Fault:
    """Sends SIGTERM to one process; both must save at the same step and end with 143.

    Args:
      flags: of the run, without `--workdir`. The uninterrupted run is in `reference(workdir)`.
      workdir: of the run; deleted first.
      moment: seconds after the run has begun to compile; None waits for the first checkpoint.
      host: the process that gets the signal.
    """
    codes, seconds, message = _end(flags, workdir, moment, host, signal.SIGTERM)
    steps, resumed = saved.steps(workdir), _resumes(flags, workdir)
    holds = codes == [143, 143] and steps != [] and resumed
    name = f"SIGTERM to process {host} {_when(moment)}"
    return Fault(name, codes, seconds, steps, resumed, holds, message)


def kill(flags: Sequence[str], workdir: Path, moment: float | None, host: int) -> Fault:
    """Kills one process with `kill -9`; the other must end with an error, not hang.

    Args:
      flags, workdir, moment, host: as for `terminate`.
    """
    codes, seconds, message = _end(flags, workdir, moment, host, signal.SIGKILL)
    steps, resumed = saved.steps(workdir), _resumes(flags, workdir)
    holds = codes[1 - host] not in (None, 0) and resumed
    name = f"kill -9 of process {host} {_when(moment)}"
    return Fault(name, codes, seconds, steps, resumed, holds, message)


def damaged_data(flags: Sequence[str], workdir: Path, data_dir: Path, folder: Path) -> Fault:
    """Gives process 1 a damaged photograph; both must save at the same step and end with 2.

    Args:
      flags: of a run on the ImageNet sample, without `--workdir` and `dataset.data_dir`.
      workdir: of the run; deleted first.
      data_dir: with the data sets of TFDS.
      folder: for copies of the data, one for each process.
    """
    flags = [*flags, "--config.dataset.data_dir=data"]
    folders = [folder / f"host_{host}" for host in range(HOSTS)]
    for host in folders:
        shutil.rmtree(host, ignore_errors=True)
        shutil.copytree(data_dir / "imagenet2012", host / "data" / "imagenet2012")
    files = sorted((folders[1] / "data").rglob("*train*array_record*"))
    whole = files[0].read_bytes()
    middle = len(whole) // 2
    shutil.rmtree(workdir, ignore_errors=True)
    _uninterrupted(flags, workdir, folders)
    files[0].write_bytes(whole[:middle] + bytes(1000) + whole[middle + 1000 :])
    with Run([*flags, f"--workdir={workdir}"], HOSTS, folders=folders) as run:
        run.wait_until(lambda: _STARTED in run.stdout())
        started = time.monotonic()
        codes = run.exit_codes(SECONDS_TO_END)
        seconds = time.monotonic() - started
        message = _last_line(run.stderr(0))
    steps = saved.steps(workdir)
    files[0].write_bytes(whole)
    resumed = _resumes(flags, workdir, folders)
    holds = codes == [2, 2] and resumed and steps != []
    return Fault("damaged photograph on process 1", codes, seconds, steps, resumed, holds, message)


def missing_config(flags: Sequence[str], workdir: Path, folder: Path) -> Fault:
    """Starts process 1 in a folder without the config file; both must end with 2 at once."""
    folders = [folder / f"host_{host}" for host in range(HOSTS)]
    for host in folders:
        host.mkdir(parents=True, exist_ok=True)
    config = next(flag for flag in flags if flag.startswith("--config=")).partition("=")[2]
    shutil.copy(config.partition(":")[0], folders[0] / "recipe.py")
    others = [flag for flag in flags if not flag.startswith("--config=")]
    shutil.rmtree(workdir, ignore_errors=True)
    started = time.monotonic()
    with Run(
        ["--config=recipe.py", f"--workdir={workdir}", *others], HOSTS, folders=folders
    ) as run:
        codes = run.exit_codes(SECONDS_TO_END)
        seconds = time.monotonic() - started
        message = _last_line(run.stderr(0))
    holds = codes == [2, 2] and not workdir.exists()
    return Fault("no config file on process 1", codes, seconds, [], None, holds, message)


def reference(workdir: Path) -> Path:
    """Returns the workdir of the uninterrupted run, beside `workdir`."""
    return workdir.parent / f"{workdir.name} uninterrupted"


def moments(seed: int, count: int, seconds: float) -> list[tuple[float, int]]:
    """Returns random moments within `seconds`, each with the process to end."""
    rng = random.Random(seed)
    return [(rng.uniform(0, seconds), rng.randrange(HOSTS)) for _ in range(count)]


def duration(flags: Sequence[str], workdir: Path) -> float:
    """Makes the uninterrupted run; returns its seconds from the start of compiling to the end."""
    shutil.rmtree(reference(workdir), ignore_errors=True)
    with Run([*flags, f"--workdir={reference(workdir)}"], HOSTS) as run:
        run.wait_until(lambda: _STARTED in run.stdout())
        started = time.monotonic()
        if run.exit_codes(900) != [0] * HOSTS:
            raise RuntimeError(run.outputs())
        return time.monotonic() - started


def _end(
    flags: Sequence[str], workdir: Path, moment: float | None, host: int, number: signal.Signals
) -> tuple[list[int | None], float, str]:
    limit = SECONDS_TO_SAVE if number == signal.SIGTERM else SECONDS_TO_END
    shutil.rmtree(workdir, ignore_errors=True)
    _uninterrupted(flags, workdir)
    with Run([*flags, f"--workdir={workdir}"], HOSTS) as run:
        run.wait_until(lambda: _STARTED in run.stdout())
        if moment is None:
            run.wait_until(lambda: bool(saved.steps(workdir)))
        time.sleep(moment or 0)
        run.processes[host].send_signal(number)
        started = time.monotonic()
        codes = run.exit_codes(limit)
        return codes, time.monotonic() - started, _last_line(run.stderr(1 - host))


def _uninterrupted(flags: Sequence[str], workdir: Path, folders: Sequence[Path] = ()) -> None:
    if not saved.steps(reference(workdir)):
        _complete(flags, reference(workdir), folders)


def _resumes(flags: Sequence[str], workdir: Path, folders: Sequence[Path] = ()) -> bool:
    """Starts the run again; returns whether it ends like the uninterrupted one."""
    _complete(flags, workdir, folders)
    last = saved.steps(reference(workdir))[-1]
    return saved.steps(workdir)[-1] == last and saved.same_bits(
        saved.arrays(workdir, last), saved.arrays(reference(workdir), last)
    )


def _complete(flags: Sequence[str], workdir: Path, folders: Sequence[Path]) -> None:
    complete([*flags, f"--workdir={workdir}"], HOSTS, folders=folders)


def _when(moment: float | None) -> str:
    return "after its first checkpoint" if moment is None else f"after {moment:.1f} s"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
