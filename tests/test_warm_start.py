"""Runs that start from the weights of another run, and rules that change during a run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import arguments, arrays, checkpoint_steps, rows, run
from test_saved_workdir import FIXTURE

import dnw_jax
from dnw_jax.main import main

STEPS = {"num_steps": "6", "evaluate__every_steps": "2", "checkpoint__keep": "1"}
WEIGHT = "['params']['graph']['edges']['weight']"
AVERAGE = "['average']['graph']['edges']['weight']"


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a trained complete graph."""
    workdir = tmp_path_factory.mktemp("complete")
    run(workdir, model__edges="complete", **STEPS)
    return workdir


def edge_weights(workdir: Path, step: int) -> np.ndarray:
    return arrays(workdir, step)[WEIGHT]


def wiring(workdir: Path, step: int | str = "last") -> np.ndarray:
    model, _ = dnw_jax.load(workdir, step)
    return np.asarray(dnw_jax.wiring(model)["graph"])


def top_edges(weights: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(-np.abs(weights), axis=None, kind="stable")
    return np.isin(np.arange(weights.size), order[:count]).reshape(weights.shape)


def test_a_complete_run_keeps_its_first_checkpoint(complete: Path) -> None:
    steps = checkpoint_steps(complete)
    assert steps[0] == 0
    assert steps[-1] == 6
    assert wiring(complete).all()


@pytest.mark.parametrize("rule", ["fine_tune", "lottery_ticket"])
def test_the_edges_of_a_complete_graph(complete: Path, tmp_path: Path, rule: str) -> None:
    """The wiring is always the trained graph's top edges. A lottery ticket has first weights."""
    fields = {"model__edges": rule, "init_from": str(complete), "checkpoint__keep": "3"}
    # With learning rate 0 the weights stay as they are at the start.
    frozen = {"num_steps": "1", "optimizer__learning_rate": "0"}
    run(tmp_path / "frozen", **STEPS | fields | frozen)
    initial = edge_weights(complete, 6 if rule == "fine_tune" else 0)
    np.testing.assert_array_equal(edge_weights(tmp_path / "frozen", 1), initial)

    workdir = tmp_path / "run"
    run(workdir, **STEPS | fields)
    expected = top_edges(edge_weights(complete, 6), 288)
    for step in (2, 4, 6):
        np.testing.assert_array_equal(wiring(workdir, step), expected)
    assert [row["live_edges/graph"] for row in rows(workdir, "train")] == [288] * 3
    # Only real edges learn.
    final = edge_weights(workdir, 6)
    assert (final != initial)[expected].all()

    # A resumed run continues with its weights: it does not read `init_from` a second time.
    shutil.rmtree(workdir / "checkpoints" / "6")
    run(workdir, **STEPS | fields)
    np.testing.assert_array_equal(edge_weights(workdir, 6), final)


def test_any_run_can_start_from_another_one(complete: Path, tmp_path: Path) -> None:
    """Its parameters and their average start from the weights of the checkpoint."""
    fields = {"init_from": f"{complete}/checkpoints/0", "optimizer__learning_rate": "0"}
    run(tmp_path, num_steps="1", ema__decay="0.9", **fields)
    np.testing.assert_array_equal(edge_weights(tmp_path, 1), edge_weights(complete, 0))
    average = arrays(tmp_path, 1)[AVERAGE]
    np.testing.assert_allclose(average, edge_weights(complete, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model__edges": "fine_tune"}, "init_from must name the workdir"),
        ({"init_from": "no/such/run"}, "init_from is no/such/run; it must be the workdir of a run"),
        (
            {"init_from": "COMPLETE", "model__num_nodes": "32"},
            "graph/edges/weight: expected (32, 32)",
        ),
        ({"init_from": "COMPLETE/checkpoints/5"}, "no checkpoint of step 5"),
        (
            {"init_from": str(FIXTURE), "model__edges": "lottery_ticket"},
            "a run with model.edges=random; lottery_ticket starts from a trained complete graph",
        ),
    ],
)
def test_an_invalid_init_from_is_refused(
    capsys: pytest.CaptureFixture[str],
    complete: Path,
    tmp_path: Path,
    fields: dict[str, str],
    expected: str,
) -> None:
    fields = {name: text.replace("COMPLETE", str(complete)) for name, text in fields.items()}
    assert main(arguments(tmp_path / "run", **fields)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Rules that change or draw random numbers during a run.


@pytest.mark.slow
def test_annealing(tmp_path: Path) -> None:
    """From all 576 edges to 288 over the first half of the run, and the penalty shrinks them."""
    fields = {"num_steps": "8", "evaluate__every_steps": "1", "model__edges": "l1_anneal"}
    run(tmp_path / "weak", model__l1="0", **fields)
    live_edges = [row["live_edges/graph"] for row in rows(tmp_path / "weak", "train")]
    assert live_edges == [504, 432, 360, 288, 288, 288, 288, 288]
    run(tmp_path / "strong", model__l1="0.01", **fields)
    weak, strong = (np.abs(edge_weights(tmp_path / name, 8)).sum() for name in ("weak", "strong"))
    assert strong < 0.95 * weak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "accumulate_steps"),
    [
        ("targeted_dropout", "1"),
        ("targeted_dropout", "2"),
        ("targeted_dropout_per_node", "1"),
        ("l1_anneal", "1"),
        ("l1_anneal", "2"),
    ],
)
def test_resuming_changes_no_weight(tmp_path: Path, rule: str, accumulate_steps: str) -> None:
    fields = {"model__edges": rule, "accumulate_steps": accumulate_steps}
    fields |= {"num_steps": "5", "checkpoint__every_steps": "3"}
    run(tmp_path, **fields)
    final = edge_weights(tmp_path, 5)
    assert wiring(tmp_path).sum() == (24 * 12 if rule == "targeted_dropout_per_node" else 288)
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    run(tmp_path, **fields)
    np.testing.assert_array_equal(edge_weights(tmp_path, 5), final)


@pytest.mark.slow
def test_the_average_of_the_parameters(tmp_path: Path) -> None:
    """Evaluation and loading use the average; training continues with the parameters."""
    run(tmp_path / "plain", **STEPS)
    run(tmp_path / "averaged", ema__decay="0.5", **STEPS)
    averaged = arrays(tmp_path / "averaged", 6)
    plain_weights = edge_weights(tmp_path / "plain", 6)
    np.testing.assert_array_equal(averaged[WEIGHT], plain_weights)
    assert np.abs(averaged[AVERAGE] - plain_weights).max() > 1e-4
    model, _ = dnw_jax.load(tmp_path / "averaged")
    np.testing.assert_array_equal(np.asarray(model.graph.edges.weight[...]), averaged[AVERAGE])
    plain_loss, averaged_loss = (
        rows(tmp_path / name, "test")[-1]["loss"] for name in ("plain", "averaged")
    )
    assert plain_loss != averaged_loss
