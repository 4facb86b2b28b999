"""A trained model loads for use from a checkpoint of any optimizer; resuming needs the same one."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import arguments, arrays, run, saved_state
from test_saved_workdir import FIXTURE, SAVED

import dnw_jax
from dnw_jax.errors import UserError
from dnw_jax.main import main
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.workdir import checkpoint_tree, load_model

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def adam_workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir whose only checkpoint, of step 10, has the optimizer state of Adam."""
    workdir = tmp_path_factory.mktemp("adam") / "run"
    shutil.copytree(FIXTURE, workdir)
    state, optimizer = saved_state(workdir, 10), optax.adam(1e-3)
    state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
    shutil.rmtree(workdir / "checkpoints")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(10, checkpoint_tree(state), accuracy=0.5)
    return workdir


@pytest.mark.parametrize("step", ["last", "best", 10])
def test_load(adam_workdir: Path, step: str | int) -> None:
    images = jnp.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8, 1)
    model, _ = dnw_jax.load(adam_workdir, step)
    original, _ = dnw_jax.load(FIXTURE)
    np.testing.assert_array_equal(model(images), original(images))
    # The model has the averaged parameters.
    average = arrays(FIXTURE, 10)["['average']['head']['kernel']"]
    np.testing.assert_array_equal(model.head.kernel[...], average)


def test_evaluate(adam_workdir: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(adam_workdir, tmp_path / "run")
    assert main(["--mode=evaluate", f"--workdir={workdir}"]) == 0
    before, now = (
        json.loads((folder / "evaluation.json").read_text()) for folder in (FIXTURE, workdir)
    )
    assert now["step"] == 10
    assert now["loss"] == pytest.approx(before["loss"], rel=1e-5)


def test_profile(adam_workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for workdir in (adam_workdir, FIXTURE):
        assert main(["--mode=profile", f"--workdir={workdir}"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("step 10, one image of 8 pixels a side:")


def test_init_from(adam_workdir: Path, tmp_path: Path) -> None:
    fields = {"init_from": str(adam_workdir), "optimizer__learning_rate": "0"}
    run(tmp_path, num_steps="1", **fields)
    np.testing.assert_array_equal(
        arrays(tmp_path, 1)["['params']['head']['kernel']"],
        arrays(FIXTURE, 10)["['average']['head']['kernel']"],
    )


def test_resuming_lists_the_leaves_of_the_other_optimizer(
    adam_workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(adam_workdir, **SAVED | {"num_steps": "20"})) == 2
    error = capsys.readouterr().err
    assert f"{adam_workdir / 'checkpoints' / '10'}: this checkpoint does not fit" in error
    lines = error.splitlines()[1:-1]
    assert all(line.startswith("  opt_state/") for line in lines)
    assert "  opt_state/0/mu/head/bias: expected nothing, found float32[10]" in lines
    assert any("expected float32" in line and "found nothing" in line for line in lines)


def test_every_leaf_of_another_model_is_listed(adam_workdir: Path) -> None:
    overrides = {"model.num_outputs": "6", "ema.decay": "0"}
    config = dnw_jax.load_config(adam_workdir / "config.json", overrides)
    with pytest.raises(UserError) as caught:
        load_model(adam_workdir, config=config)
    lines = str(caught.value).splitlines()
    assert "  params/head/kernel: expected float32[6, 10], found float32[8, 10]" in lines
    assert "  average/head/bias: expected nothing, found float32[10]" in lines
    assert not any("opt_state" in line for line in lines)
