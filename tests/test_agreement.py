"""What processes agree on: two real processes, connected over loopback, do the same program."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import ROOT

from dnw_jax.platform import agreement
from dnw_jax.platform.interrupts import Interrupts
from experiments.hosts.launch import free_port

PROGRAM = """
import json, os, sys
from pathlib import Path
import jax, ml_dtypes, numpy as np
process = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=process)
from dnw_jax.errors import UserError
from dnw_jax.platform import agreement
from dnw_jax.platform.interrupts import Interrupts
from dnw_jax.train.dispatch import agreed_size

agreement._VISIBLE_WITHIN_SECONDS = 1
results = {}

def stop_of(error, number):
    interrupts = Interrupts()
    interrupts.number = number
    stop = agreement.agreed_stop(error, interrupts)
    return None if stop is None else [type(stop).__name__, *map(str, stop.args)]

def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

results["sizes"] = [agreed_size([0.1, 7.0][process] / (1 + number)) for number in range(2)]
special = np.array([-0.0, np.nan, -np.inf, 1e-45], np.float32)
tree = {
    "a": special if process == 0 else np.ones(4, np.float32),
    "b": [np.bool_(process == 0), np.int8(-3 * (1 - process)), np.empty((0, 2))],
    "c": jax.numpy.full((2, 2), 1.5 + process, jax.numpy.bfloat16),
}
arrived = jax.tree.leaves(agreement.from_first(tree))
results["bytes"] = [(str(array.dtype), array.shape, array.tobytes().hex()) for array in arrived]
results["total"] = agreement.total(3 + process)
results["largest"] = agreement.largest(0.25 * (1 - process))
results["no reason"] = stop_of(None, None)
results["signal of the second"] = stop_of(None, [None, 15][process])
results["two signals"] = stop_of(None, [2, 15][process])
results["error of the first"] = stop_of([UserError("mine"), None][process], None)
results["error beats signal"] = stop_of([None, OSError("full")][process], [15, None][process])
results["equal"] = error_of(agreement.check_equal, data=b"x", configuration=b"y")
results["different"] = error_of(
    agreement.check_equal, data=b"x", the_configuration=[b"y", b"z"][process]
)
here = Path(sys.argv[3])
results["shared"] = error_of(agreement.check_shared, here)
results["not shared"] = error_of(agreement.check_shared, here / str(process))

def fails_on_second():
    with agreement.together():
        if process == 1:
            raise UserError("mine")

results["together"] = error_of(fails_on_second)
with agreement.quiet_unless_first():
    print("printed by", process)
print(json.dumps(results))
jax.distributed.shutdown()
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What each process printed, and the folder that both saw."""
    folder, address = tmp_path_factory.mktemp("agreement"), f"localhost:{free_port()}"
    for process in range(2):
        (folder / str(process)).mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(process), folder],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    return [out for out, _ in ended], folder


@pytest.fixture(scope="module")
def results(outputs: tuple[list[str], Path]) -> list[dict[str, Any]]:
    """The results of both processes. Gloo, which connects the processes, prints lines as well."""
    return [json.loads(out.splitlines()[-1]) for out in outputs[0]]


def test_all_processes_use_the_clock_of_the_first(results: list[dict[str, Any]]) -> None:
    assert [result["sizes"] for result in results] == [[20, 40]] * 2


def test_every_bit_of_the_first_arrives(results: list[dict[str, Any]]) -> None:
    special = np.array([-0.0, np.nan, -np.inf, 1e-45], np.float32)
    expected = [
        ["float32", [4], special.tobytes().hex()],
        ["bool", [], "01"],
        ["int8", [], "fd"],
        ["float64", [0, 2], ""],
        ["bfloat16", [2, 2], "c03f" * 4],
    ]
    assert [result["bytes"] for result in results] == [expected, expected]


def test_all_processes_stop_for_the_same_reason(results: list[dict[str, Any]]) -> None:
    def of_both(name: str) -> list[Any]:
        return [result[name] for result in results]

    def reported_by(process: int) -> list[str]:
        return ["UserError", f"stopped because of an error in process {process}, which reports it"]

    assert of_both("no reason") == [None, None]
    assert of_both("signal of the second") == [["KeyboardInterrupt", "15"]] * 2
    assert of_both("two signals") == [["KeyboardInterrupt", "15"]] * 2
    assert of_both("error of the first") == [["UserError", "mine"], reported_by(0)]
    assert of_both("error beats signal") == [reported_by(1), ["OSError", "full"]]
    assert of_both("together") == [": ".join(reported_by(1)), "UserError: mine"]


def test_values_are_added(results: list[dict[str, Any]]) -> None:
    assert [result["total"] for result in results] == [7, 7]
    assert agreement.total(3) == 3
    assert [result["largest"] for result in results] == [0.25, 0.25]


def test_differences_are_named_by_all(results: list[dict[str, Any]]) -> None:
    assert [result["equal"] for result in results] == [None, None]
    for result in results:
        assert "differ from process 0: the configuration of process 1. Start" in result["different"]


def test_all_processes_must_see_the_mark_of_the_first(
    outputs: tuple[list[str], Path], results: list[dict[str, Any]]
) -> None:
    assert [result["shared"] for result in results] == [None, None]
    for process, result in enumerate(results):
        folder = outputs[1] / str(process)
        assert result["not shared"].startswith(f"UserError: {folder} is not the same folder")
        assert "process 1 does not see the file" in result["not shared"]
        assert list(folder.iterdir()) == []


def test_only_the_first_process_prints(outputs: tuple[list[str], Path]) -> None:
    assert "printed by 0" in outputs[0][0]
    assert "printed by" not in outputs[0][1]


def test_one_process_agrees_with_itself(tmp_path: Path) -> None:
    interrupts = Interrupts()
    assert agreement.agreed_stop(None, interrupts) is None
    interrupts.number = 15
    assert repr(agreement.agreed_stop(None, interrupts)) == "KeyboardInterrupt(15)"
    error = OSError("full")
    assert agreement.agreed_stop(error, interrupts) is error
    agreement.check_equal(data=b"x")
    agreement.check_shared(tmp_path)
    with pytest.raises(OSError, match="full"), agreement.together():
        raise error
    with pytest.raises(KeyboardInterrupt), agreement.together(interrupts):
        pass
