"""A run that is stopped and started again ends with the same bits as one that is not."""

import functools
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict
from small_runs import (
    arrays,
    assert_same_bits,
    checkpoint_steps,
    contents,
    rows,
    run,
    small_config,
    start,
)

from dnw_jax.platform.interrupts import Interrupts
from dnw_jax.train import loop
from dnw_jax.train.feed import Feed, open_feed

# 64 steps in an epoch; epochs, checkpoints, logs and the end fall on different steps.
LONG = {
    "batch_size": "8",
    "num_steps": "68",
    "schedule__name": "cosine",
    "checkpoint__every_steps": "7",
    "log__every_steps": "3",
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the workdir of a long run without a stop, by its rule."""

    @functools.cache
    def finished(edges: str) -> Path:
        workdir = tmp_path_factory.mktemp("straight")
        run(workdir, model__edges=edges, **LONG)
        return workdir

    return finished


def stop(process: subprocess.Popen[str], workdir: Path, stop_signal: signal.Signals) -> str:
    """Signals the process in its first epoch, after a checkpoint; returns what it wrote to stderr.

    The last row is then later than the last checkpoint.
    """
    deadline = time.monotonic() + 300
    while max(checkpoint_steps(workdir), default=0) < 14 or rows(workdir)[-1]["step"] % 7 == 0:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the run ended too early, or hangs: {process.communicate()}")
        time.sleep(0.001)
    process.send_signal(stop_signal)
    return process.communicate(timeout=120)[1]


# Killed.


class Killed(NamedTuple):
    """A run that was killed and then finished.

    Attributes:
      checkpoint: the step of its last checkpoint when it was killed.
      row: the step of its last row when it was killed.
    """

    workdir: Path
    checkpoint: int
    row: int


@pytest.fixture(scope="module")
def killed(straight: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    # The straight run first: it fills the compilation cache, so that the kill hits training.
    straight("dnw")
    workdir = tmp_path_factory.mktemp("killed")
    process = start(workdir, **LONG)
    stop(process, workdir, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = Killed(workdir, checkpoint_steps(workdir)[-1], rows(workdir)[-1]["step"])
    run(workdir, **LONG)
    return before


def test_the_kill_came_in_the_middle_of_an_epoch(killed: Killed) -> None:
    assert 0 < killed.checkpoint < killed.row < 64


def test_a_kill_changes_no_bit(killed: Killed, straight: Callable[[str], Path]) -> None:
    assert_same_bits(arrays(killed.workdir, 68), arrays(straight("dnw"), 68))
    assert checkpoint_steps(killed.workdir) == checkpoint_steps(straight("dnw"))


def test_a_kill_changes_no_row(killed: Killed, straight: Callable[[str], Path]) -> None:
    # Train rows after each log and each checkpoint, test rows after each epoch, and at the end.
    train = sorted({*range(3, 69, 3), *range(7, 69, 7), 64, 68})
    assert [row["step"] for row in rows(killed.workdir, "train")] == train
    assert [row["step"] for row in rows(killed.workdir, "test")] == [64, 68]
    assert rows(killed.workdir) == rows(straight("dnw"))
    for row in rows(killed.workdir, "train"):
        rate = 0.05 * (1 + np.cos(np.pi * row["step"] / 68))
        # float32: near the end the two terms of the cosine schedule almost cancel.
        np.testing.assert_allclose(row["learning_rate"], rate, rtol=1e-5, atol=1e-8)


def test_a_kill_changes_neither_result_nor_picture(
    killed: Killed, straight: Callable[[str], Path]
) -> None:
    killed_files, straight_files = (
        {
            name: data
            for name, data in contents(folder).items()
            if name.startswith("wiring") or name in ("evaluation.json", "config.json")
        }
        for folder in (killed.workdir, straight("dnw"))
    )
    assert killed_files == straight_files
    assert len(killed_files) == 4


# Interrupted.


@pytest.mark.parametrize(("number", "edges"), [(signal.SIGINT, "dnw"), (signal.SIGTERM, "random")])
def test_an_interrupted_run_saves_a_checkpoint_and_resumes(
    straight: Callable[[str], Path], tmp_path: Path, number: signal.Signals, edges: str
) -> None:
    fields = LONG | {"model__edges": edges}
    finished, workdir = straight(edges), tmp_path / "run"
    process = start(workdir, **fields)
    stderr = stop(process, workdir, number)
    assert process.returncode == 128 + number
    empty, saving, interrupted = stderr.splitlines()
    assert (empty, saving) == (
        "",
        "saving after the steps under way, then stopping; Ctrl-C again stops at once",
    )
    assert interrupted == (
        f"interrupted: the same command resumes from the last checkpoint in {workdir}"
    )
    stopped = checkpoint_steps(workdir)[-1]
    assert stopped == rows(workdir)[-1]["step"] < 68
    run(workdir, **fields)
    assert_same_bits(arrays(workdir, 68), arrays(finished, 68))
    assert rows(workdir, "test") == rows(finished, "test")
    # The interrupt ended a row early; the next row covers only the rest of the steps.
    resumed_rows, straight_rows = (
        {row["step"]: row for row in rows(folder, "train")} for folder in (workdir, finished)
    )
    following = min(step for step in straight_rows if step > stopped)
    assert set(resumed_rows) == {*straight_rows, stopped}
    assert all(
        resumed_rows[step] == row
        for step, row in straight_rows.items()
        if step not in (stopped, following)
    )


def test_a_second_ctrl_c_interrupts_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert interrupts.number is None
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again" in capfd.readouterr().err
        assert interrupts.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX would swallow an exception that a signal raises in one of its callbacks."""

    def open_and_interrupt(config: ConfigDict, mesh: Mesh) -> Feed:
        signal.raise_signal(signal.SIGINT)
        return open_feed(config, mesh)

    monkeypatch.setattr(loop, "open_feed", open_and_interrupt)
    with pytest.raises(KeyboardInterrupt, match=str(int(signal.SIGINT))):
        loop.train(small_config(**LONG), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
