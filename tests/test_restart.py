"""A run is made longer, divided into other dispatches, or started again with other settings."""

import json
import shutil
import threading
from pathlib import Path

import pytest
from small_runs import (
    arguments,
    arrays,
    assert_same_bits,
    contents,
    rows,
    run,
)

from dnw_jax.main import main

SHORT = {"log__every_steps": "10", "checkpoint__every_steps": "5"}

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def straight_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a short run without a stop."""
    workdir = tmp_path_factory.mktemp("straight_10")
    run(workdir, **SHORT)
    return workdir


@pytest.fixture
def finished_10(straight_10: Path, tmp_path: Path) -> Path:
    """A copy of `straight_10`."""
    return shutil.copytree(straight_10, tmp_path / "run")


def test_a_run_can_be_made_longer(
    capsys: pytest.CaptureFixture[str], straight_10: Path, tmp_path: Path
) -> None:
    run(tmp_path, num_steps="5", **SHORT)
    capsys.readouterr()
    run(tmp_path, num_steps="10", **SHORT)
    output = capsys.readouterr().out
    assert "num_steps: 5 != 10\n" in output
    assert "resuming after step 5 of 10\n" in output
    assert_same_bits(arrays(tmp_path, 10), arrays(straight_10, 10))
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 10


def test_other_dispatches_in_another_thread_change_no_bit(
    straight_10: Path, tmp_path: Path
) -> None:
    """Signals reach the main thread alone, so a run in another thread cannot handle them."""
    fields = SHORT | {"log__every_steps": "1"}
    thread = threading.Thread(target=run, args=(tmp_path,), kwargs=fields)
    thread.start()
    thread.join()
    assert len(rows(tmp_path, "train")) == 10
    assert len(rows(straight_10, "train")) == 2
    assert_same_bits(arrays(tmp_path, 10), arrays(straight_10, 10))


def test_a_finished_run_is_left_alone(
    capsys: pytest.CaptureFixture[str], finished_10: Path
) -> None:
    before = contents(finished_10)
    run(finished_10, **SHORT | {"log__every_steps": "1"})
    output = capsys.readouterr().out
    assert "nothing to do: 10 steps are done, 10 were asked for; to continue, raise" in output
    assert "resuming" not in output
    assert f"last: test accuracy {rows(finished_10)[-1]['accuracy']:.2%} (step 10)" in output
    assert contents(finished_10) == before


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        (
            {"model__edges": "random", "model__sparsity": "0.25"},
            ["  model.edges: 'dnw' != 'random'", "  model.sparsity: 0.5 != 0.25"],
        ),
        (
            {"dataset__num_channels": "3", "dataset__num_classes": "7", "num_steps": "20"},
            ["  dataset.num_channels: 1 != 3", "  dataset.num_classes: 10 != 7"],
        ),
    ],
)
@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_another_model_is_refused(
    capsys: pytest.CaptureFixture[str],
    finished_10: Path,
    mode: str,
    fields: dict[str, str],
    lines: list[str],
) -> None:
    before = contents(finished_10)
    capsys.readouterr()
    assert main([*arguments(finished_10, **SHORT | fields), f"--mode={mode}"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert str(finished_10) in error[0]
    assert error[1:-1] == lines
    assert contents(finished_10) == before


def test_another_recipe_is_refused(capsys: pytest.CaptureFixture[str], finished_10: Path) -> None:
    before = contents(finished_10)
    fields = SHORT | {"seed": "1", "batch_size": "64", "num_steps": "20"}
    assert main(arguments(finished_10, **fields)) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[1:-1] == ["  batch_size: 32 != 64", "  seed: 0 != 1"]
    assert contents(finished_10) == before


def test_a_damaged_checkpoint_is_reported_and_can_be_deleted(
    capsys: pytest.CaptureFixture[str], straight_10: Path, finished_10: Path
) -> None:
    folder = finished_10 / "checkpoints" / "10"
    # Every data file: Orbax writes some that it never reads back.
    for data in folder.rglob("d/*"):
        damaged = bytearray(data.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        data.write_bytes(damaged)
    capsys.readouterr()
    assert main(arguments(finished_10, **SHORT)) == 2
    error = capsys.readouterr().err
    assert f"{folder}: this checkpoint is damaged" in error
    assert "Delete that folder; training then resumes from step 5." in error
    shutil.rmtree(folder)
    run(finished_10, **SHORT)
    assert "resuming after step 5 of 10\n" in capsys.readouterr().out
    assert_same_bits(arrays(finished_10, 10), arrays(straight_10, 10))
