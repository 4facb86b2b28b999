"""A run on eight devices, which XLA makes out of one CPU, gives the results of one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from small_runs import DIGITS, ROOT, SMALL, checkpoint_steps, rows, run

from dnw_jax.config import load_config
from dnw_jax.models import build_model
from dnw_jax.step.state import create_train_state, update

WIRINGS = ("static", "continuous")
FIELDS = {"num_steps": "3", "log__every_steps": "1"}

PROGRAM = f"""
import sys
from pathlib import Path
import jax
from dnw_jax.main import main
from small_runs import arguments, run

assert jax.device_count() == 8
folder = Path(sys.argv[1])
for wiring in {WIRINGS!r}:
    run(folder / wiring, model__wiring=wiring, **{FIELDS!r})
print("======")
for mode in ("train", "evaluate"):
    flags = arguments(folder / "static", batch_size="36", **{FIELDS!r})
    print("exit code", main([*flags, "--mode=" + mode]))
"""


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of the runs on eight devices, and the stdout and stderr of their process."""
    folder = tmp_path_factory.mktemp("eight")
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, folder],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout, ended.stderr


@pytest.mark.parametrize("wiring", WIRINGS)
def test_eight_devices_give_the_results_of_one(
    eight: tuple[Path, str, str], tmp_path: Path, wiring: str
) -> None:
    assert jax.device_count() == 1
    run(tmp_path, model__wiring=wiring, **FIELDS)
    ours, one = rows(eight[0] / wiring), rows(tmp_path)
    assert len(ours) == len(one) == 4
    for row, expected in zip(ours, one, strict=True):
        assert row.keys() == expected.keys()
        assert (row["step"], row["split"]) == (expected["step"], expected["split"])
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-4)
        np.testing.assert_allclose(row["accuracy"], expected["accuracy"], atol=1e-6)
    assert ours[-1]["num_examples"] == 200


def test_one_device_resumes_from_the_checkpoint_of_eight(
    capsys: pytest.CaptureFixture[str], eight: tuple[Path, str, str]
) -> None:
    workdir = eight[0] / "static"
    run(workdir, **FIELDS | {"num_steps": "4"})
    assert "resuming after step 3 of 4\n" in capsys.readouterr().out
    assert checkpoint_steps(workdir) == [3, 4]


def test_all_devices_are_used_and_printed(eight: tuple[Path, str, str]) -> None:
    assert eight[1].count("8 x cpu") == len(WIRINGS)


def test_a_batch_that_cannot_be_split_is_refused(eight: tuple[Path, str, str]) -> None:
    """Training refuses it; evaluation pads it."""
    trained, _, evaluated = eight[1].split("======\n")[1].partition("exit code 2\n")
    assert trained == ""
    assert evaluated.endswith("over 200 examples\nexit code 0\n")
    problem = "batch_size is 36; it must be a multiple of 8 (the devices), for instance 32 or 40"
    assert eight[2] == f"error: {problem}\n"


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_step_can_be_lowered_for_other_platforms(platform: str, wiring: str) -> None:
    """Lowering takes the branches of that platform; compiling would need its compiler."""
    config = load_config(DIGITS, SMALL | {"model.wiring": wiring})
    state = create_train_state(config, build_model(config), steps_per_epoch=16)
    batch = {"image": jnp.zeros((32, 8, 8, 1)), "label": jnp.zeros(32, jnp.int32)}
    leaves, structure = jax.tree.flatten((state, batch))

    def step(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(update(*jax.tree.unflatten(structure, leaves)))

    exported = export.export(jax.jit(step), platforms=[platform])(*leaves)
    assert exported.platforms == (platform,)
    expected = jax.tree.leaves(jax.eval_shape(update, state, batch))
    assert [array.shape for array in exported.out_avals] == [array.shape for array in expected]
