"""A workdir that an earlier version of the package wrote can be loaded, evaluated and resumed.

`fixtures/workdir` was written before the modules moved into folders. It holds ten steps of the run
that `SAVED` describes (synthetic images, a random wiring, averaged parameters). Never replace it.
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import arguments, arrays, checkpoint_steps, rows

import dnw_jax
from dnw_jax.main import main

FIXTURE = Path(__file__).parent / "fixtures" / "workdir"
SAVED = {
    "model__edges": "random",
    "ema__decay": "0.9",
    "evaluate__every_steps": "5",
    "log__every_steps": "5",
}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "run"))


def test_load(workdir: Path) -> None:
    model, config = dnw_jax.load(workdir)
    assert config.model.edges == "random"
    assert int(dnw_jax.wiring(model)["graph"].sum()) == 288
    assert model(jnp.zeros((2, 8, 8, 1))).shape == (2, 10)


def test_evaluating_gives_the_same_result(workdir: Path) -> None:
    before = json.loads((workdir / "evaluation.json").read_text())
    assert main(["--mode=evaluate", f"--workdir={workdir}"]) == 0
    now = json.loads((workdir / "evaluation.json").read_text())
    assert now["step"] == before["step"] == 10
    assert now["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert now["accuracy"] == pytest.approx(before["accuracy"], abs=0.011)


def test_resuming_gives_the_same_arrays(workdir: Path) -> None:
    saved = arrays(workdir, 10)
    shutil.rmtree(workdir / "checkpoints" / "10")
    assert main(arguments(workdir, **SAVED)) == 0
    assert checkpoint_steps(workdir) == [5, 10]
    resumed = arrays(workdir, 10)
    assert resumed.keys() == saved.keys()
    for name, array in saved.items():  # not bit for bit: another processor may round differently
        np.testing.assert_allclose(resumed[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    assert [row["step"] for row in rows(workdir)] == [5, 5, 10, 10]
