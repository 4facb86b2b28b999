"""Training and evaluation: the single steps by hand, whole runs through `main`."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from small_runs import (
    DIGITS,
    arguments,
    arrays,
    checkpoint_steps,
    rows,
    run,
    saved_state,
    small_config,
)

import dnw_jax
from dnw_jax import data
from dnw_jax.config import from_json
from dnw_jax.main import main
from dnw_jax.models import edge_layers
from dnw_jax.platform import devices
from dnw_jax.run.workdir import load_model
from dnw_jax.step.state import evaluation_state, random_key, with_frozen_edges
from dnw_jax.step.state import split as split_model
from dnw_jax.train import TrainState, create_train_state, evaluate_step, train_step
from dnw_jax.train.evaluate import evaluate_all
from dnw_jax.train.feed import DeviceFeed

TRAINED = {
    "batch_size": "64",  # 8 steps in an epoch
    "num_steps": "100",
    "evaluate__every_steps": "20",
    "checkpoint__keep": "2",
}
# A weight decay that halves all weights at each step, so that the model unlearns everything.
SPOILT = TRAINED | {
    "num_steps": "112",
    "evaluate__every_steps": "4",
    "optimizer__weight_decay": "5.0",
}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that learned something."""
    workdir = tmp_path_factory.mktemp("trained")
    run(workdir, **TRAINED)
    return workdir


@pytest.fixture(scope="module")
def spoilt(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, resumed until it has unlearned everything."""
    workdir = shutil.copytree(trained, tmp_path_factory.mktemp("spoilt") / "run")
    run(workdir, **SPOILT)
    return workdir


def images(split: data.Split) -> jax.Array:
    return jnp.asarray((split.images / 255 - 0.5) / 0.22, jnp.float32)


def cross_entropy(logits: Any, labels: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """Returns the cross-entropy of each example, in NumPy and float64."""
    logits = np.asarray(logits, np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    true = log_p[np.arange(len(labels)), labels]
    return -(1 - smoothing) * true - smoothing * log_p.mean(axis=1)


def averages(model: nnx.Module, split: data.Split) -> tuple[float, float]:
    """Returns loss and accuracy over a whole split: one forward pass, averaged in NumPy."""
    logits = model(images(split), train=False)
    hits = np.argmax(logits, axis=1) == split.labels
    return cross_entropy(logits, split.labels).mean(), hits.mean()


# One step.


@pytest.fixture(scope="module")
def batch() -> dict[str, jax.Array]:
    return first_examples(32)


def first_examples(number: int) -> dict[str, jax.Array]:
    split = data.load_split(small_config().dataset, "train")
    return {"image": images(split)[:number], "label": jnp.asarray(split.labels[:number])}


def new_state(config: ConfigDict) -> TrainState:
    return create_train_state(config, dnw_jax.build_model(config), steps_per_epoch=16)


@pytest.fixture(scope="module")
def start() -> TrainState:
    """A state of the small config. Tests share it, so that one program serves all of them."""
    return new_state(small_config())


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_step_leaves_its_arguments_alone(start: TrainState, batch: dict[str, jax.Array]) -> None:
    state = start
    before = leaves((state, batch))
    first, _ = train_step(state, batch)
    second, _ = train_step(state, batch)
    for old, new in zip(before, leaves((state, batch)), strict=True):
        np.testing.assert_array_equal(old, new)
    for one, other in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(first.step) == 1
    for name in ("params", "variables"):
        pairs = zip(leaves(getattr(state, name)), leaves(getattr(first, name)), strict=True)
        assert all(np.any(old != new) for old, new in pairs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_returns_the_loss_and_accuracy_before_it(
    start: TrainState, batch: dict[str, jax.Array], smoothing: float
) -> None:
    state = dataclasses.replace(start, label_smoothing=smoothing)
    logits = state.model()(batch["image"], train=True)
    _, metrics = train_step(state, batch)
    expected = cross_entropy(logits, np.asarray(batch["label"]), smoothing).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    hits = np.argmax(logits, axis=1) == batch["label"]
    np.testing.assert_allclose(metrics["accuracy"], hits.mean(), rtol=1e-6)
    assert set(metrics) == {"loss", "accuracy", "accuracy_top5"}


def test_evaluation_smooths_no_label(start: TrainState, batch: dict[str, jax.Array]) -> None:
    state = dataclasses.replace(start, label_smoothing=0.1)
    sums = evaluate_step(state, batch)
    expected = cross_entropy(state.model()(batch["image"]), np.asarray(batch["label"])).sum()
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-6)
    assert float(sums.examples) == 32


@pytest.mark.parametrize("rule", ["dnw", "random", "l1_anneal", "targeted_dropout"])
def test_edges_chosen_once_for_all_batches(batch: dict[str, jax.Array], rule: str) -> None:
    """In the middle of a run, with averaged parameters."""
    state = new_state(small_config(model__edges=rule, ema__decay="0.5"))
    model = state.model()
    for layer in edge_layers(model).values():
        layer.advance(jnp.float32(0.5))
    _, _, variables = split_model(model)
    average = jax.tree.map(lambda parameter: -0.9 * parameter, state.params)
    state = dataclasses.replace(state, variables=variables, average=average)
    frozen = with_frozen_edges(state)
    for ours, theirs in zip(
        leaves(evaluate_step(frozen, batch)), leaves(evaluate_step(state, batch)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    layers, masks = edge_layers(frozen.model()), dnw_jax.wiring(state.model())
    for name, mask in masks.items():
        assert np.all(mask | (layers[name].weights == 0))
        assert np.all(layers[name].real_edges())


def test_accumulated_gradients_are_the_mean_of_the_parts(start: TrainState) -> None:
    batch = first_examples(64)
    whole, state = dataclasses.replace(start, accumulate_steps=2), start
    halves = [jax.tree.map(lambda a, s=s: a[s::2], batch) for s in (0, 1)]
    accumulated, metrics = train_step(whole, batch)
    # The first update is linear in the gradient: its mean is the update of the mean.
    first, first_metrics = train_step(state, halves[0])
    second, second_metrics = train_step(
        dataclasses.replace(state, variables=first.variables), halves[1]
    )
    for name in ("params", "opt_state"):
        expected = jax.tree.map(
            lambda a, b: (a + b) / 2, *(getattr(s, name) for s in (first, second))
        )
        for ours, theirs in zip(leaves(getattr(accumulated, name)), leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    # The running statistics include one part after the other.
    for ours, theirs in zip(leaves(accumulated.variables), leaves(second.variables), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    for name, value in metrics.items():
        np.testing.assert_allclose(
            value, (first_metrics[name] + second_metrics[name]) / 2, rtol=1e-6
        )
    assert int(accumulated.step) == 1


def test_the_schedule_ends_with_the_run(start: TrainState, batch: dict[str, jax.Array]) -> None:
    # Linear, two steps: half the rate, then none.
    state, _ = train_step(new_state(small_config(schedule__name="linear", num_steps="2")), batch)
    last, _ = train_step(state, batch)
    for before, after in zip(leaves(state.params), leaves(last.params), strict=True):
        np.testing.assert_array_equal(before, after)
    constant, _ = train_step(start, batch)
    initial, moved, half = (s.params["head"]["kernel"] for s in (start, constant, state))
    np.testing.assert_allclose(half - initial, (moved - initial) / 2, rtol=1e-3, atol=1e-7)


def test_a_state_copies_the_arrays_of_the_model() -> None:
    model = dnw_jax.build_model(small_config())
    before = leaves(nnx.state(model))
    state = create_train_state(small_config(), model, steps_per_epoch=16)
    for array in jax.tree.leaves((state.params, state.variables)):
        array.delete()  # as donating the state does
    for old, new in zip(before, leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(old, new)


# Evaluation.


@pytest.fixture(scope="module")
def trained_state(trained: Path) -> tuple[TrainState, ConfigDict]:
    model, config, _ = load_model(trained)
    return evaluation_state(model), config


@pytest.mark.parametrize("batch_size", [1, 33, 200, 1000])
def test_evaluation_sees_every_example_once(
    trained_state: tuple[TrainState, ConfigDict], batch_size: int
) -> None:
    state, config = trained_state
    mesh, split = devices.data_mesh(), data.load_split(config.dataset, "test")
    feed = DeviceFeed.of(config, mesh, train=False)
    (metrics,) = evaluate_all(state, feed, batch_size, mesh)
    loss, accuracy = averages(state.model(), split)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    assert metrics["num_examples"] == len(split.labels) == 200


@pytest.mark.parametrize("with_config", [True, False])
def test_evaluate_mode(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, with_config: bool
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "evaluation.json").unlink()
    flags = arguments(workdir, **TRAINED | {"batch_size": "33"})
    if not with_config:
        flags = [f"--workdir={workdir}", "--config.batch_size=33"]
    capsys.readouterr()
    assert main([*flags, "--mode=evaluate"]) == 0
    (last,) = (row for row in rows(workdir, "test") if row["step"] == 100)
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    np.testing.assert_allclose(evaluation.pop("loss"), last["loss"], rtol=1e-6)
    assert evaluation == {
        "accuracy": last["accuracy"],
        "accuracy_top5": last["accuracy_top5"],
        "num_examples": 200,
        "step": 100,
        "changed": ["batch_size: 64 != 33"],
    }
    output = capsys.readouterr().out
    assert "(trained != now):\n  batch_size: 64 != 33\nstep 100: test loss " in output
    assert f"test accuracy {last['accuracy']:.2%} over 200 examples\n" in output
    assert rows(workdir) == rows(trained)
    assert (workdir / "config.json").read_text() == (trained / "config.json").read_text()


@pytest.mark.parametrize("step", ["80", "best"])
def test_evaluate_mode_of_another_step(trained: Path, tmp_path: Path, step: str) -> None:
    workdir = shutil.copytree(trained, tmp_path / "run")
    assert main([f"--workdir={workdir}", "--mode=evaluate", f"--step={step}"]) == 0
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["step"] == (best_step(trained) if step == "best" else 80)
    (row,) = (row for row in rows(trained, "test") if row["step"] == evaluation["step"])
    np.testing.assert_allclose(evaluation["loss"], row["loss"], rtol=1e-5)
    assert evaluation["accuracy"] == row["accuracy"]


def best_step(workdir: Path) -> int:
    """Returns the step of highest test accuracy; of several such steps the last one."""
    _, step = max((row["accuracy"], row["step"]) for row in rows(workdir, "test"))
    return step


# A run.


def test_the_loss_falls(trained: Path) -> None:
    train, test = rows(trained, "train"), rows(trained, "test")
    assert train[-1]["loss"] < train[0]["loss"] - 0.15
    assert test[-1]["loss"] < test[0]["loss"] - 0.15


def test_rows(trained: Path) -> None:
    # Logged every 50 steps, and with each checkpoint.
    assert [(row["step"], row["split"]) for row in rows(trained)] == [
        (20, "train"),
        (20, "test"),
        (40, "train"),
        (40, "test"),
        (50, "train"),
        (60, "train"),
        (60, "test"),
        (80, "train"),
        (80, "test"),
        (100, "train"),
        (100, "test"),
    ]
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    assert row["epoch"] == 2.5
    np.testing.assert_allclose(row["learning_rate"], 0.1, rtol=1e-6)
    assert row["images_per_second"] > 0
    assert row["live_edges/graph"] == 24 * 24 / 2
    assert 0 <= row["edge_churn/graph"] < 1
    assert json.loads(lines[1])["num_examples"] == 200


def test_the_result_is_the_last_row(trained: Path) -> None:
    evaluation = json.loads((trained / "evaluation.json").read_text())
    row = rows(trained, "test")[-1]
    assert row.pop("split") == "test"
    assert row.pop("epoch") == 12.5
    assert evaluation == {**row, "changed": []}


def test_the_config_is_saved_in_full(trained: Path) -> None:
    text = (trained / "config.json").read_text()
    assert from_json(text).to_dict() == small_config(**TRAINED).to_dict()
    assert json.loads(text) == json.loads(small_config(**TRAINED).to_json())


def test_the_end_prints_where_everything_is(
    capsys: pytest.CaptureFixture[str], spoilt: Path
) -> None:
    run(spoilt, **SPOILT)
    lines = capsys.readouterr().out.splitlines()
    test = {row["step"]: row["accuracy"] for row in rows(spoilt, "test")}
    best = best_step(spoilt)
    assert f"last: test accuracy {test[112]:.2%} (step 112)" in lines
    assert f"best: test accuracy {test[best]:.2%} (step {best})" in lines
    for name, folder in (
        ("checkpoints", "checkpoints"),
        ("wiring pictures", "wiring"),
        ("TensorBoard", "tensorboard"),
    ):
        assert any(line.startswith(f"{name}: {spoilt / folder}") for line in lines)
        assert any((spoilt / folder).iterdir())


def test_a_run_makes_the_updates_of_train_step(tmp_path: Path) -> None:
    """`main` makes the same updates as `train_step` on batches that are made by hand."""
    run(tmp_path, num_steps="3")
    config = small_config(num_steps="3")
    split, state = data.load_split(config.dataset, "train"), new_state(config)
    augmentation_key = random_key(jnp.uint32(config.seed), "augmentation")
    metrics = []
    for step in range(3):
        indices = data.train_indices(config.seed, step, 512, 32)
        positions = jnp.arange(step * 32, (step + 1) * 32, dtype=jnp.uint32)
        pixels = data.random_crop_flip(augmentation_key, positions, split.images[indices], 1, True)
        batch = {
            "image": data.normalise(pixels, (0.5,), (0.22,)),
            "label": jnp.asarray(split.labels[indices]),
        }
        state, step_metrics = train_step(state, batch)
        metrics.append(step_metrics)
    (row,) = rows(tmp_path, "train")
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(row[name], np.mean([m[name] for m in metrics]), rtol=1e-5)
    saved = saved_state(tmp_path, 3)
    for ours, theirs in zip(leaves(saved), leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_trains(tmp_path: Path) -> None:
    run(tmp_path, dtype="bfloat16", num_steps="100", batch_size="64")
    train = rows(tmp_path, "train")
    assert train[-1]["loss"] < train[0]["loss"] - 0.1
    assert {array.dtype.name for array in arrays(tmp_path, 100).values()} == {
        "float32",
        "int32",
        "uint32",
    }


def test_a_profile_of_some_steps(tmp_path: Path) -> None:
    run(tmp_path, profile_steps="(2, 4)")
    assert [path.name for path in (tmp_path / "profile").rglob("*.xplane.pb")]


# What a run leaves on disk.


def test_the_last_and_the_best_checkpoints_are_kept(trained: Path, spoilt: Path) -> None:
    assert checkpoint_steps(trained) == sorted({80, 100, best_step(trained)})
    assert checkpoint_steps(spoilt) == sorted({108, 112, best_step(spoilt)})


@pytest.mark.parametrize("which", ["last", "best", "number"])
def test_load(spoilt: Path, which: str) -> None:
    step = {"last": 112, "best": best_step(spoilt), "number": 108}[which]
    # "last" is the default.
    arguments_of_load = {"last": (), "best": ("best",), "number": (step,)}[which]
    model, config = dnw_jax.load(spoilt, *arguments_of_load)
    assert config.to_dict() == small_config(**SPOILT).to_dict()
    (row,) = (row for row in rows(spoilt, "test") if row["step"] == step)
    loss, accuracy = averages(model, data.load_split(config.dataset, "test"))
    np.testing.assert_allclose(loss, row["loss"], rtol=1e-5)
    np.testing.assert_allclose(accuracy, row["accuracy"], rtol=1e-6)
    assert int(dnw_jax.wiring(model)["graph"].sum()) == 288


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (21, "no checkpoint of step 21"),
        ("21", "no checkpoint of step 21"),
        ("first", "step is 'first'; it must be 'last', 'best' or a number"),
        (None, "step is None; it must be 'last', 'best' or a number"),
    ],
)
def test_load_of_a_step_without_checkpoint(spoilt: Path, step: Any, expected: str) -> None:
    with pytest.raises(dnw_jax.UserError, match=expected):
        dnw_jax.load(spoilt, step)


@pytest.mark.parametrize("step", ["last", "best", 3])
def test_load_of_a_run_without_checkpoint(trained: Path, tmp_path: Path, step: int | str) -> None:
    shutil.copy(trained / "config.json", tmp_path)
    with pytest.raises(dnw_jax.UserError, match=str(tmp_path)):
        dnw_jax.load(tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_load_of_a_missing_workdir(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(dnw_jax.UserError, match=f"{missing} holds no run"):
        dnw_jax.load(missing)
    assert not missing.exists()


def test_load_of_a_broken_config(trained: Path, tmp_path: Path) -> None:
    text = (trained / "config.json").read_text()
    (tmp_path / "config.json").write_text(text[:100])
    with pytest.raises(dnw_jax.UserError, match=r"config\.json is not JSON"):
        dnw_jax.load(tmp_path)


def test_a_start_without_checkpoint_leaves_the_config_free(tmp_path: Path) -> None:
    """For example a smaller batch, after a start that ran out of memory."""
    (tmp_path / "config.json").write_text(small_config(model__num_nodes="32").to_json())
    run(tmp_path, num_steps="1")
    assert dnw_jax.load(tmp_path)[1].model.num_nodes == 24


@pytest.mark.slow
def test_a_solver_may_change(tmp_path: Path) -> None:
    """Checkpoints do not depend on the solver; evaluation uses the solver of its config."""
    fields = {"model__wiring": "continuous", "model__solver__step_size": "0.5", "num_steps": "1"}
    run(tmp_path, **fields)
    (before,) = rows(tmp_path, "test")
    assert (
        main([f"--workdir={tmp_path}", "--mode=evaluate", "--config.model.solver.name=tsit5"]) == 0
    )
    after = json.loads((tmp_path / "evaluation.json").read_text())
    assert after["loss"] != before["loss"]
    assert after["changed"] == ["model.solver.name: 'dopri5' != 'tsit5'"]
    run(tmp_path, **fields | {"num_steps": "2", "model__solver__step_size": "0.25"})


def test_evaluate_of_a_missing_workdir(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([f"--workdir={tmp_path / 'missing'}", "--mode=evaluate"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "missing").exists()


def test_a_workdir_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert main(arguments(path)) == 2
    assert f"workdir is {path}; {path} is no folder" in capsys.readouterr().err
    assert path.read_text() == "mine"


# Losses and weights that are not finite.


def test_an_infinite_loss_stops_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = {
        "optimizer__learning_rate": "1e30",
        "checkpoint__every_steps": "1",
        "log__every_steps": "1",
    }
    assert main(arguments(tmp_path, **flags)) == 2
    error = capsys.readouterr().err
    kept = checkpoint_steps(tmp_path)
    assert 0 < kept[-1] < 10
    assert f"error: the training loss is nan by step {kept[-1] + 1}, so the run stops" in error
    assert f"the last good checkpoint is of step {kept[-1]}" in error
    assert "learning_rate (now 1e+30)" in error
    assert str(tmp_path) in error
    assert all(np.isfinite(array).all() for array in arrays(tmp_path, kept[-1]).values())
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))


@pytest.mark.parametrize(
    ("learning_rate", "weight_decay", "what"),
    # The update itself overflows, or the logits do because the weights are large.
    [("3e38", "1e3", "some weights are NaN or infinite"), ("1e30", "1e-4", "the test loss is nan")],
)
def test_a_spoilt_model_is_not_saved(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    learning_rate: str,
    weight_decay: str,
    what: str,
) -> None:
    flags = {"optimizer__learning_rate": learning_rate, "optimizer__weight_decay": weight_decay}
    assert main(arguments(tmp_path, **flags, num_steps="1")) == 2
    error = capsys.readouterr().err
    assert f"error: {what} " in error
    assert "by step 1, so the run stops; no checkpoint was saved.\n" in error
    assert checkpoint_steps(tmp_path) == []
    assert rows(tmp_path, "test") == []
    assert not (tmp_path / "evaluation.json").exists()
    assert main([f"--config={DIGITS}", f"--workdir={tmp_path}", "--mode=evaluate"]) == 2
