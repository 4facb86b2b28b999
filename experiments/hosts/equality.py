"""Compares runs on several arrangements of hosts and devices with the same run on one device."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.hosts import saved
from experiments.hosts.cases import flags
from experiments.hosts.launch import complete

STEPS = 20
TOLERANCE = 1e-5
ARRANGEMENTS = ((1, 8), (2, 4), (4, 2))  # hosts, devices of each


@dataclass(frozen=True)
class Comparison:
    """One run beside the run on one device.

    Attributes:
      difference: largest absolute difference of a parameter or a running statistic after the last
        step. The momentum is left out: it sums differences of 20 gradients.
      moved: largest change of a parameter between steps 5 and 20.
      flipped: edges that are real in one of the runs alone.
      num_tested: test examples that the evaluation counted, here and on one device.
      correct: test examples that were right, here and on one device.
      logged: steps of the rows of `metrics.jsonl`, of training.
    """

    case: str
    hosts: int
    devices: int
    difference: float
    moved: float
    flipped: int
    num_tested: tuple[int, int]
    correct: tuple[int, int]
    logged: list[int]

    @property
    def holds(self) -> bool:
        """Returns whether everything is as on one device."""
        return (
            self.difference <= TOLERANCE
            and self.flipped == 0
            and self.num_tested[0] == self.num_tested[1]
            and self.correct[0] == self.correct[1]
            and self.logged == [5, 10, 15, 20]
        )


def compare(
    case: str, data_dir: Path, folder: Path, arrangements: Sequence[tuple[int, int]] = ARRANGEMENTS
) -> list[Comparison]:
    """Trains a case on one device and on every arrangement.

    Args:
      case: of `cases.CASES`.
      data_dir: with the data sets of TFDS.
      folder: for the workdirs; a run that is there is not repeated.
      arrangements: hosts and devices of each.
    """
    one = _workdir(folder, case, 1, 1)
    _train(case, one, data_dir, 1, 1)
    comparisons = []
    for hosts, devices in arrangements:
        workdir = _workdir(folder, case, hosts, devices)
        _train(case, workdir, data_dir, hosts, devices)
        (test,), (test_of_one,) = (saved.rows(run, "test") for run in (workdir, one))
        correct = [round(row["accuracy"] * row["num_examples"]) for row in (test, test_of_one)]
        ours, expected = (saved.arrays(run, STEPS) for run in (workdir, one))
        comparisons.append(
            Comparison(
                case,
                hosts,
                devices,
                saved.largest_difference(ours, expected),
                saved.largest_difference(expected, saved.arrays(one, 5), ("params",)),
                saved.num_flipped(workdir, one, STEPS),
                (test["num_examples"], test_of_one["num_examples"]),
                (correct[0], correct[1]),
                [row["step"] for row in saved.rows(workdir, "train")],
            )
        )
    return comparisons


@dataclass(frozen=True)
class Elastic:
    """A run that was resumed on other hosts and devices, beside an uninterrupted one.

    Attributes:
      difference: as in `Comparison`, from the run on one device.
      repeated: whether the run that was resumed on the same arrangement has the same bits.
    """

    case: str
    difference: float
    repeated: bool

    @property
    def holds(self) -> bool:
        """Returns whether both are as they should be."""
        return self.difference <= TOLERANCE and self.repeated


def elastic(case: str, data_dir: Path, folder: Path) -> Elastic:
    """Trains 10 steps on two hosts, 5 on one and 5 on four devices; then 10 again on two hosts."""
    one, two = _workdir(folder, case, 1, 1), _workdir(folder, case, 2, 1)
    _train(case, one, data_dir, 1, 1)
    _train(case, two, data_dir, 2, 1)
    moved = folder / f"{two.name} moved"
    again = folder / f"{two.name} again"
    for copy in (moved, again):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(two, copy)
        _forget_after(10, copy)
    complete(flags(case, moved, data_dir), 1, 1)
    _forget_after(15, moved)
    complete(flags(case, moved, data_dir), 1, 4)
    complete(flags(case, again, data_dir), 2, 1)
    states = {run: saved.arrays(run, STEPS) for run in (one, two, moved, again)}
    return Elastic(
        case,
        saved.largest_difference(states[moved], states[one]),
        saved.same_bits(states[again], states[two]),
    )


def _workdir(folder: Path, case: str, hosts: int, devices: int) -> Path:
    name = "".join(letter if letter.isalnum() else "_" for letter in case)
    return folder / f"{name} {hosts}x{devices}"


def _train(case: str, workdir: Path, data_dir: Path, hosts: int, devices: int) -> None:
    if STEPS not in saved.steps(workdir):
        complete(flags(case, workdir, data_dir), hosts, devices)


def _forget_after(step: int, workdir: Path) -> None:
    for later in saved.steps(workdir):
        if later > step:
            shutil.rmtree(workdir / "checkpoints" / str(later))
