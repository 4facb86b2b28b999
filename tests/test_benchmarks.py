"""What the benchmarks say of wrong arguments; and that their workers make steps."""

import shutil
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import train_step
from experiments.benchmarks.alternate import alternate

SERVES = "from experiments.benchmarks.alternate import serve; serve(lambda: None, {steps})"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "foo"], "argument --cases: invalid choice: 'foo'"),
        (["--modes", "bar"], "argument --modes: invalid choice: 'bar'"),
        (["--turns", "0"], "argument --turns: 0 is no whole number of 1 or more"),
        (
            ["--reference=/nowhere"],
            "/nowhere is no checkout of allenai/dnw: there",
        ),
        (["--reference-python=nothing"], "nothing is no program"),
        ([f"--reference-python={shutil.which('true')}"], "true is no Python interpreter"),
        (["--reference-python", sys.executable], f"{sys.executable} lacks"),
        (["--json=/nowhere/times.json"], "there is no folder /nowhere"),
        (["--json=/"], "/ is a folder; name a file in it"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_step.main(arguments)
    assert message in capsys.readouterr().err


def test_workers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(train_step.__file__).parents[2])
    commands = {name: [sys.executable, "-c", SERVES.format(steps=2)] for name in "ab"}
    timings = alternate(commands, turns=3)
    assert list(timings) == ["a", "b"]
    assert all(len(timing.seconds) == 3 and timing.median >= 0 for timing in timings.values())


def test_a_worker_that_stops_is_named() -> None:
    with pytest.raises(RuntimeError, match="the worker 'broken' stopped"):
        alternate({"broken": [sys.executable, "-c", ""]}, turns=1)
