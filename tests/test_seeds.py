"""Several seeds trained side by side."""

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import (
    arguments,
    arrays,
    assert_same_bits,
    checkpoint_steps,
    contents,
    rows,
    run,
    small_config,
)

import dnw_jax
from dnw_jax.errors import UserError
from dnw_jax.main import main
from dnw_jax.models import build_model
from dnw_jax.step.state import create_train_state, update
from dnw_jax.train.seeds import seed_configs, stack_seeds, unstack_seeds

SEEDS = {"num_seeds": "3", "seed": "4", "checkpoint__every_steps": "5"}
FOLDERS = ("seed_4", "seed_5", "seed_6")


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of ten steps with three seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    run(folder, **SEEDS)
    return folder


def test_a_seed_is_the_run_of_that_seed(workdir: Path, tmp_path: Path) -> None:
    run(tmp_path, seed="6")
    together, alone = arrays(workdir / "seed_6", 10), arrays(tmp_path, 10)
    assert together.keys() == alone.keys()
    for name, array in alone.items():
        np.testing.assert_allclose(together[name], array, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("wiring", ["static", pytest.param("continuous", marks=pytest.mark.slow)])
def test_seeds_side_by_side(wiring: str) -> None:
    """Accelerators train all seeds in one `vmap`; a CPU trains one after the other."""
    config = small_config(model__wiring=wiring, num_seeds="2")
    states = [
        create_train_state(seed_config, build_model(seed_config), steps_per_epoch=16)
        for seed_config in seed_configs(config)
    ]
    images = jax.random.normal(jax.random.key(0), (2, 32, 8, 8, 1))
    batches = {"image": images, "label": jnp.tile(jnp.arange(32) % 10, (2, 1))}
    together, sums = jax.jit(jax.vmap(update))(stack_seeds(states), batches)
    parts = (unstack_seeds(tree, 2) for tree in (batches, together, sums))
    for state, batch, *of_seed in zip(states, *parts, strict=True):
        expected = jax.jit(update)(state, batch)
        for ours, theirs in zip(jax.tree.leaves(of_seed), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_each_seed_has_an_ordinary_workdir(workdir: Path) -> None:
    weights = []
    for folder in FOLDERS:
        model, config = dnw_jax.load(workdir / folder)
        assert (config.seed, config.num_seeds) == (int(folder[-1]), 1)
        weights.append(np.asarray(model.graph.edges.weight[...]))
        assert [row["step"] for row in rows(workdir / folder, "test")] == [10]
        assert list((workdir / folder / "wiring").glob("*.png"))
    assert not np.allclose(weights[0], weights[1])


def test_means_and_deviations_over_the_seeds(workdir: Path) -> None:
    rows_of_seeds = [rows(workdir / folder) for folder in FOLDERS]
    for means, *seed_rows in zip(rows(workdir), *rows_of_seeds, strict=True):
        assert {row["split"] for row in seed_rows} == {means["split"]}
        for metric in ("loss", "accuracy"):
            values = [row[metric] for row in seed_rows]
            assert means[metric] == pytest.approx(mean(values))
            assert means[f"{metric}_std"] == pytest.approx(stdev(values))
            assert [means[f"{metric}/{folder}"] for folder in FOLDERS] == values
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["accuracy_std"] == rows(workdir, "test")[-1]["accuracy_std"]


def test_evaluation_of_all_seeds(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode=evaluate", f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    assert all(f"{folder}, step 10: test loss" in out for folder in FOLDERS)
    means = rows(workdir, "test")[-1]
    assert f"accuracy {means['accuracy']:.2%} ± {means['accuracy_std']:.2%}" in out
    saved = json.loads((workdir / "evaluation.json").read_text())
    assert (saved["step"], saved["num_examples"]) == (10, means["num_examples"])


def test_profiles_of_all_seeds(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode=profile", f"--workdir={workdir}"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("seed_")] == [
        f"{folder}, step 10, one image of 8 pixels a side:" for folder in FOLDERS
    ]


def test_another_number_of_seeds_is_another_run(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, num_steps="1")
    for folder, fields in ((tmp_path, SEEDS), (workdir, {})):
        before = contents(folder)
        assert main(arguments(folder, **fields, num_steps="20")) == 2
        assert "num_seeds: " in capsys.readouterr().err
        assert contents(folder) == before


def test_a_workdir_of_seeds_is_no_single_model(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"holds 3 seeds: name one of them, .*seed_4"):
        dnw_jax.load(workdir)


def test_resume_from_the_last_step_that_all_seeds_have(workdir: Path, tmp_path: Path) -> None:
    shutil.copytree(workdir, tmp_path / "killed")
    # A kill between the saves of two seeds: the last seed lacks the last checkpoint.
    shutil.rmtree(tmp_path / "killed" / "seed_6" / "checkpoints" / "10")
    run(tmp_path / "killed", **SEEDS, num_steps="15")
    run(tmp_path / "whole", **SEEDS, num_steps="15")
    for folder in FOLDERS:
        assert 15 in checkpoint_steps(tmp_path / "killed" / folder)
        assert_same_bits(*(arrays(tmp_path / name / folder, 15) for name in ("killed", "whole")))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("checkpoint__keep", "1", "checkpoint.keep must be at least 2"),
        ("seed", str(2**32 - 1), "seed + num_seeds must be at most"),
        ("num_seeds", "0", "num_seeds = 0: must be an integer >= 1"),
    ],
)
def test_settings_that_are_refused(
    field: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, **(SEEDS | {field: value}))) == 2
    assert message in capsys.readouterr().err
