"""Runs that start from another run's weights, and rules that change while a run goes on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import arguments, arrays, checkpoint_steps, rows, run

import dnw_jax
from dnw_jax.main import main

STEPS = {"num_steps": "6", "evaluate__every_steps": "2", "checkpoint__keep": "1"}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a trained complete graph."""
    workdir = tmp_path_factory.mktemp("complete")
    run(workdir, model__edges="complete", **STEPS)
    return workdir


def edges(workdir: Path, step: int) -> np.ndarray:
    return arrays(workdir, step)["['params']['graph']['edges']['weight']"]


def wiring(workdir: Path, step: int | str = "last") -> np.ndarray:
    model, _ = dnw_jax.load(workdir, step)
    return np.asarray(dnw_jax.wiring(model)["graph"])


def top(weights: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(-np.abs(weights), axis=None, kind="stable")
    return np.isin(np.arange(weights.size), order[:count]).reshape(weights.shape)


def test_a_complete_run_keeps_where_it_started(complete: Path) -> None:
    steps = checkpoint_steps(complete)
    assert steps[0] == 0
    assert steps[-1] == 6
    assert wiring(complete).all()


@pytest.mark.parametrize("rule", ["fine_tune", "lottery_ticket"])
def test_the_edges_of_a_complete_graph(complete: Path, tmp_path: Path, rule: str) -> None:
    """The trained graph's top edges throughout; its last weights, or its first, to begin with."""
    fields = {"model__edges": rule, "init_from": str(complete)}
    # No rate: the weights stay as they begin.
    run(tmp_path / "still", **STEPS | fields | {"optimizer__learning_rate": "0"})
    start = edges(complete, 6 if rule == "fine_tune" else 0)
    np.testing.assert_array_equal(edges(tmp_path / "still", 6), start)

    run(tmp_path / "run", **STEPS | fields | {"checkpoint__keep": "3"})
    expected = top(edges(complete, 6), 288)
    for step in (2, 4, 6):
        np.testing.assert_array_equal(wiring(tmp_path / "run", step), expected)
    live = [row["live_edges/graph"] for row in rows(tmp_path / "run", "train")]
    assert live == [288] * 3
    # Only real edges learn.
    moved = edges(tmp_path / "run", 6) != start
    assert moved[expected].all()


def test_any_run_can_start_from_another(complete: Path, tmp_path: Path) -> None:
    fields = {"init_from": f"{complete}/checkpoints/0", "optimizer__learning_rate": "0"}
    run(tmp_path, num_steps="1", **fields)
    np.testing.assert_array_equal(edges(tmp_path, 1), edges(complete, 0))


def test_the_average_starts_there_too(complete: Path, tmp_path: Path) -> None:
    fields = {"init_from": str(complete), "optimizer__learning_rate": "0", "ema__decay": "0.9"}
    run(tmp_path, num_steps="1", **fields)
    averaged = arrays(tmp_path, 1)["['average']['graph']['edges']['weight']"]
    np.testing.assert_allclose(averaged, edges(complete, 6), rtol=1e-6)


def test_a_second_start_goes_on_with_its_own_weights(complete: Path, tmp_path: Path) -> None:
    fields = {"model__edges": "fine_tune", "init_from": str(complete)}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole, **STEPS | fields)
    run(stopped, **STEPS | fields | {"num_steps": "4"})
    run(stopped, **STEPS | fields)
    np.testing.assert_array_equal(edges(stopped, 6), edges(whole, 6))


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
            {"init_from": "OTHER", "model__edges": "lottery_ticket"},
            "a run with model.edges=dnw; lottery_ticket starts from a trained complete graph",
        ),
    ],
)
def test_what_cannot_be_started_from(
    capsys: pytest.CaptureFixture[str],
    complete: Path,
    tmp_path: Path,
    fields: dict[str, str],
    expected: str,
) -> None:
    if fields.get("init_from") == "OTHER":
        run(tmp_path / "OTHER", num_steps="1")
        fields = fields | {"init_from": str(tmp_path / "OTHER")}
    fields = {name: text.replace("COMPLETE", str(complete)) for name, text in fields.items()}
    assert main(arguments(tmp_path / "run", **fields)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Rules that change or draw while a run goes on.


def test_annealing(tmp_path: Path) -> None:
    """From all 576 edges to 288 over the first half of the run, and the penalty shrinks them."""
    fields = {"num_steps": "8", "evaluate__every_steps": "1", "model__edges": "l1_anneal"}
    run(tmp_path / "weak", model__l1="0", **fields)
    live = [row["live_edges/graph"] for row in rows(tmp_path / "weak", "train")]
    assert live == [504, 432, 360, 288, 288, 288, 288, 288]
    run(tmp_path / "strong", model__l1="0.01", **fields)
    weak, strong = (np.abs(edges(tmp_path / name, 8)).sum() for name in ("weak", "strong"))
    assert strong < 0.95 * weak


@pytest.mark.parametrize("rule", ["targeted_dropout", "targeted_dropout_per_node", "l1_anneal"])
@pytest.mark.parametrize("accumulate_steps", ["1", "2"])
def test_a_stop_changes_nothing(tmp_path: Path, rule: str, accumulate_steps: str) -> None:
    fields = {"model__edges": rule, "accumulate_steps": accumulate_steps}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole, num_steps="5", **fields, checkpoint__every_steps="3")
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "5")
    run(stopped, num_steps="5", **fields, checkpoint__every_steps="3")
    np.testing.assert_array_equal(edges(stopped, 5), edges(whole, 5))
    expected = 24 * 12 if rule == "targeted_dropout_per_node" else 288
    assert wiring(stopped).sum() == expected


def test_the_average_of_the_parameters(tmp_path: Path) -> None:
    """It is what is evaluated and loaded; training goes on with the parameters themselves."""
    run(tmp_path / "plain", **STEPS)
    run(tmp_path / "averaged", ema__decay="0.5", **STEPS)
    ours = arrays(tmp_path / "averaged", 6)
    np.testing.assert_array_equal(edges(tmp_path / "averaged", 6), edges(tmp_path / "plain", 6))
    averaged = ours["['average']['graph']['edges']['weight']"]
    assert np.abs(averaged - edges(tmp_path / "plain", 6)).max() > 1e-4
    model, _ = dnw_jax.load(tmp_path / "averaged")
    np.testing.assert_array_equal(np.asarray(model.graph.edges.weight[...]), averaged)
    plain, test = (rows(tmp_path / name, "test")[-1]["loss"] for name in ("plain", "averaged"))
    assert plain != test
