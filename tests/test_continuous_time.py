"""Continuous time: solvers, step control, padding, fixed steps, and gradients through the solve.

Silent nodes, states at zero and large steps make the rectification matter.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_forward
import pytest
from flax import nnx
from jax import lax
from small_graphs import (
    GRAPH,
    INPUTS,
    close,
    differences,
    gradients,
    in_time,
    node_values,
    normal,
    run,
)

import dnw_jax
from dnw_jax.config import schema
from dnw_jax.config.fixed_steps import num_fixed_steps
from dnw_jax.graphs.continuous_time import ContinuousTime, vector_field
from dnw_jax.graphs.time_graph import TimeGraph
from dnw_jax.ops import ode
from dnw_jax.ops.ode import solve_ode
from dnw_jax.ops.ode_problem import OdeProblem
from dnw_jax.ops.runge_kutta import SOLVERS
from dnw_jax.ops.step_control import first_step
from dnw_jax.train import create_train_state, evaluate_step

pytestmark = pytest.mark.usefixtures("strict_promotion", "quick_compilation")

ROOT = Path(__file__).parent.parent
DIGITS = f"{ROOT}/configs/digits.py:wiring=continuous"


def numpy_method(name: str) -> tuple[list, list]:
    return list(SOLVERS[name].stages), list(SOLVERS[name].weights)


def problem(name: str = "dopri5", num_steps: int = 0, **fields) -> OdeProblem:
    """Adaptive by default; `num_steps` fixed steps otherwise."""
    size = 1 / num_steps if num_steps else 0.0
    fields = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 100, "outputs": slice(None)} | fields
    defaults = {"vector_field": vector_field, "method": SOLVERS[name]}
    return OdeProblem(**defaults | {"step_size": size, "num_steps": num_steps} | fields)


def arguments(graph: numpy_forward.Graph = GRAPH) -> tuple:
    return node_values(graph), jnp.asarray(graph.weights, jnp.float32)


def test_solvers_are_those_of_the_settings() -> None:
    assert tuple(SOLVERS) == schema.SOLVERS


def test_a_workdir_that_names_another_solver(tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "workdir", tmp_path / "run"))
    settings = json.loads((workdir / "config.json").read_text())
    settings["model"]["solver"]["name"] = "dopri8"
    (workdir / "config.json").write_text(json.dumps(settings))
    with pytest.raises(dnw_jax.UserError) as caught:
        dnw_jax.load(workdir)
    (message,) = [line for line in str(caught.value).splitlines() if "dopri8" in line]
    assert message.strip() == "model.solver.name = 'dopri8': must be one of dopri5, tsit5, euler"


# Fixed steps.


@pytest.mark.parametrize("name", SOLVERS)
def test_fixed_steps(name: str) -> None:
    expected = numpy_forward.continuous(INPUTS, GRAPH, 4, numpy_method(name))
    assert np.any(expected == 0)  # some states were rectified
    dynamics = ContinuousTime(name, step_size=0.25, max_steps=4)
    close(run(in_time(12, dynamics, GRAPH), INPUTS), expected)


def test_the_last_fixed_step_ends_at_one() -> None:
    # Three steps of 0.4 would end after t = 1: the last one is shortened to 0.2.
    graph = GRAPH._replace(weights=np.zeros((12, 12)))  # dZ/dt = bias
    ours = run(in_time(12, ContinuousTime("euler", step_size=0.4), graph), INPUTS)
    start = numpy_forward.relu(numpy_forward.padded(INPUTS, graph))
    close(ours, numpy_forward.relu(start + graph.bias))


NUM_STEPS = {0.001: 1000, 0.1: 10, 0.3: 4, 1 / 3: 3, 0.7: 2, 1.0: 1, 1e-4: 10_000}


@pytest.mark.parametrize("step_size", NUM_STEPS)
def test_max_steps_must_suffice_for_the_fixed_steps(step_size: float) -> None:
    num_steps = NUM_STEPS[step_size]
    assert num_fixed_steps(step_size) == num_steps

    def load(max_steps: int) -> None:
        settings = {"step_size": repr(step_size), "max_steps": str(max_steps)}
        dnw_jax.load_config(DIGITS, {f"model.solver.{k}": text for k, text in settings.items()})

    load(num_steps)
    if num_steps > 1:
        with pytest.raises(dnw_jax.UserError, match="max_steps steps of step_size must reach"):
            load(num_steps - 1)


def constant_slope(state: jax.Array, slope: jax.Array, product: jax.Array | None = None):
    return jnp.broadcast_to(slope, state.shape), state


@pytest.mark.parametrize("step_size", NUM_STEPS)
def test_fixed_steps_add_up_to_one(step_size: float) -> None:
    num_steps = NUM_STEPS[step_size]
    exact = problem(
        "euler",
        num_steps,
        step_size=step_size,
        max_steps=num_steps,
        vector_field=constant_slope,
    )
    end = jax.jit(lambda slope: solve_ode(exact, jnp.zeros((1, 1, 1, 2)), slope))(
        jnp.array([1.0, 2.0])
    )
    np.testing.assert_allclose(end[0, 0, 0], [1, 2], rtol=1e-4)


@pytest.mark.parametrize("step_size", [0.0, 0.25])
def test_too_few_steps_give_nan(step_size: float) -> None:
    dynamics = ContinuousTime("tsit5", rtol=1e-7, atol=1e-7, step_size=step_size, max_steps=3)
    assert np.all(np.isnan(run(in_time(2, dynamics, GRAPH), INPUTS)))


# Adaptive steps.


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_adaptive_steps_converge(name: str) -> None:
    fine = numpy_forward.continuous(INPUTS, GRAPH, 400)
    dynamics = ContinuousTime(name, rtol=1e-4, atol=1e-4, max_steps=1000)
    ours = run(in_time(12, dynamics, GRAPH), INPUTS)
    # The last step ends after t = 1; the polynomial between its ends may fall below zero.
    close(numpy_forward.relu(np.asarray(ours)), fine, 1e-2)


@functools.partial(jax.jit, static_argnums=(2, 3))
def estimate(start, args, rtol, atol):
    adaptive = problem(rtol=rtol, atol=atol)
    return first_step(adaptive, start, vector_field(start, args)[0], args)


def test_the_first_step() -> None:
    """Hairer, Norsett, Wanner: Solving Ordinary Differential Equations I, section II.4."""
    rtol, atol, order = 1e-3, 1e-2, 5
    start = numpy_forward.relu(numpy_forward.padded(INPUTS, GRAPH))
    slope = numpy_forward.update(start, GRAPH)
    scale = atol + rtol * np.abs(start)

    def rms(x: np.ndarray) -> float:
        return np.sqrt(np.mean(x**2))

    guess = 0.01 * rms(start / scale) / rms(slope / scale)
    bend = rms((numpy_forward.update(start + guess * slope, GRAPH) - slope) / scale) / guess
    step = min(100 * guess, (0.01 / max(rms(slope / scale), bend)) ** (1 / order))
    ours = estimate(jnp.asarray(start, jnp.float32), arguments(), rtol, atol)
    assert float(ours) == pytest.approx(step, rel=1e-3)


def test_the_first_step_from_rest() -> None:
    nodes, weights = node_values(GRAPH), jnp.zeros((12, 12))
    rest = jnp.zeros((1, 4, 4, 12))
    # All states are zero and nothing moves: a millionth. Else at most a hundred times as much.
    still = estimate(rest, (nodes._replace(bias=jnp.zeros(12)), weights), 1e-3, 1e-3)
    assert float(still) == pytest.approx(1e-6)
    moving = estimate(rest, (nodes, weights), 1e-3, 1e-3)
    assert float(moving) == pytest.approx(1e-4)


# Padding.

REAL = np.array([True, True, False, True, False])


def padded_with(junk: float) -> np.ndarray:
    """The inputs at the places of real images, and junk between them."""
    images = numpy_forward.random_planes((3, 5, 4, 3), seed=5)
    images[2] *= 5  # one image that needs shorter steps
    batch = np.full((5, 5, 4, 3), junk)
    batch[REAL] = images
    return batch


@nnx.jit
def masked_states(module: TimeGraph, inputs: jax.Array, mask: jax.Array | None) -> jax.Array:
    return module(inputs, mask=mask)


@pytest.mark.parametrize("junk", [0.0, 1e4, np.inf, np.nan])
def test_padding_does_not_change_the_states_of_real_images(junk: float) -> None:
    module = in_time(3, ContinuousTime(), GRAPH)
    batch = jnp.asarray(padded_with(junk), jnp.float32)
    padded = masked_states(module, batch, jnp.asarray(REAL))
    alone = masked_states(module, batch[REAL], None)
    np.testing.assert_allclose(padded[REAL], alone, rtol=1e-5, atol=1e-5)


def test_without_a_mask_all_images_set_the_steps() -> None:
    module = in_time(3, ContinuousTime(), GRAPH)
    batch = jnp.asarray(padded_with(1e4), jnp.float32)
    together = masked_states(module, batch, None)
    alone = masked_states(module, batch[REAL], None)
    assert np.abs(together[REAL] - alone).max() > 1e-3
    everyone = masked_states(module, batch, jnp.ones(5, bool))
    np.testing.assert_allclose(everyone, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("junk", [0.0, 1.0, np.nan])
def test_a_batch_of_padding_ends(junk: float) -> None:
    module = in_time(3, ContinuousTime(max_steps=10_000), GRAPH)
    batch = jnp.full((2, 5, 4, 3), junk, jnp.float32)
    states = masked_states(module, batch, jnp.zeros(2, bool))
    assert states.shape == (2, 5, 4, 3)
    assert np.all(np.isfinite(states)) == np.isfinite(junk)


def test_evaluation_leaves_padding_out() -> None:
    fields = {"num_nodes": "24", "num_inputs": "4", "num_outputs": "8", "sparsity": "0.5"}
    config = dnw_jax.load_config(DIGITS, {f"model.{k}": text for k, text in fields.items()})
    state = create_train_state(config, dnw_jax.build_model(config), steps_per_epoch=1)
    images, labels = normal((3, 8, 8, 1), 0), jnp.arange(3)
    junk = 50 * normal((5, 8, 8, 1), 1)
    batch = {
        "image": jnp.concatenate([images, junk]),
        "label": jnp.concatenate([labels, jnp.zeros(5, jnp.int32)]),
        "mask": jnp.arange(8) < 3,
    }
    padded = evaluate_step(state, batch).means()
    alone = evaluate_step(state, {"image": images, "label": labels}).means()
    assert float(padded["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)


class Mean(nnx.Module):
    """A model of somebody who knows nothing of masks."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones((2, 3)))

    def __call__(self, images: jax.Array, *, train: bool = False, key=None) -> jax.Array:
        return images.mean((1, 2)) @ self.weight[...]


def test_a_model_without_a_mask_is_evaluated() -> None:
    config = dnw_jax.load_config(DIGITS)
    state = create_train_state(config, Mean(), steps_per_epoch=1)
    images, labels = normal((4, 3, 3, 2), 0), jnp.arange(4) % 3
    batch = {"image": images, "label": labels, "mask": jnp.array([True, True, False, False])}
    alone = evaluate_step(state, {"image": images[:2], "label": labels[:2]}).means()
    assert float(evaluate_step(state, batch).means()["loss"]) == pytest.approx(float(alone["loss"]))


# Gradients.

FIXED = {
    "euler": ContinuousTime("euler", step_size=0.25, max_steps=4),
    "dopri5": ContinuousTime("dopri5", step_size=0.5, max_steps=2),
}


@pytest.mark.parametrize("name", FIXED)
def test_gradients_of_fixed_steps(name: str) -> None:
    """Against central differences of the NumPy network in float64."""
    num_steps = FIXED[name].max_steps

    def forward(graph: numpy_forward.Graph) -> np.ndarray:
        return numpy_forward.continuous(INPUTS, graph, num_steps, numpy_method(name))[..., 9:]

    ours = gradients(in_time(3, FIXED[name], GRAPH), INPUTS)
    ours = {**ours["nodes"], "weights": ours["edges"]["weight"]}
    for parameter, gradient in ours.items():
        # Every single weight, those of edges that carry no signal among them.
        close(gradient, differences(forward, GRAPH, parameter), 1e-3)


@pytest.mark.parametrize("num_steps", [3, 6, 7, 25])
def test_gradients_of_more_steps_than_states_are_saved(num_steps: int) -> None:
    """Against autodiff of the plain loop. Six steps are saved; of more every second, fourth, ..."""
    inputs = jax.nn.relu(jnp.asarray(INPUTS, jnp.float32))
    num_silent = len(GRAPH.weights) - inputs.shape[-1]
    slope = normal((*inputs.shape[:-1], len(GRAPH.weights)), 7)
    fixed = problem("euler", num_steps)

    def ours(point):
        return jnp.vdot(slope, solve_ode(fixed, *point))

    def plain(point):
        inputs, args = point

        def step(state, _):
            return jax.nn.relu(state + vector_field(state, args)[0] / num_steps), None

        state = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, num_silent)))
        return jnp.vdot(slope, lax.scan(step, state, length=num_steps)[0])

    point = (inputs, arguments())
    leaves = (jax.tree.leaves(jax.jit(jax.grad(each))(point)) for each in (ours, plain))
    for mine, expected in zip(*leaves, strict=True):
        close(mine, expected, 1e-4)


def test_gradients_do_not_depend_on_which_steps_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many adaptive steps, some of them refused at first."""
    start = jax.nn.relu(jnp.asarray(numpy_forward.padded(INPUTS, GRAPH), jnp.float32))
    point = (start, arguments(GRAPH._replace(weights=3 * GRAPH.weights)))
    adaptive = problem(rtol=1e-6, atol=1e-6)

    def gradients_with(slots: int) -> list[np.ndarray]:
        monkeypatch.setattr(ode, "_MAX_SAVED", slots)
        gradient = jax.jit(jax.grad(lambda point: jnp.sum(solve_ode(adaptive, *point) ** 2)))
        return jax.tree.leaves(gradient(point))

    for all_saved, few_saved in zip(gradients_with(64), gradients_with(2), strict=True):
        close(all_saved, few_saved, 1e-4)


def test_gradients_of_the_adaptive_solve() -> None:
    ours = gradients(in_time(3, ContinuousTime(rtol=1e-4, atol=1e-4), GRAPH), INPUTS)
    for leaf in jax.tree.leaves(ours):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)
    fine = differences(lambda g: numpy_forward.continuous(INPUTS, g, 16)[..., 9:], GRAPH, "bias")
    mine = np.asarray(ours["nodes"]["bias"])
    # The interpolation at the end is coarse: the same direction, not the same numbers.
    assert mine @ fine > 0.95 * np.linalg.norm(mine) * np.linalg.norm(fine)


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_gradients_are_finite_when_a_step_is_tiny(name: str) -> None:
    # Steep from a start of almost nothing: the first step is so short that the polynomial of that
    # step overflows at t = 1.
    start, slope = jnp.full((1, 2, 2, 3), 2e-8), jnp.array([100.0, 120.0, 80.0])
    adaptive = problem(name, vector_field=constant_slope)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(start, slope):
        return jnp.sum(solve_ode(adaptive, start, slope))

    to_start, to_slope = gradient(start, slope)
    np.testing.assert_allclose(to_start, 1, rtol=1e-5)
    np.testing.assert_allclose(to_slope, 4, rtol=1e-5)


def test_bfloat16_planes() -> None:
    """Weights stay float32, planes are bfloat16; no silent promotion anywhere."""
    ours = run(in_time(3, FIXED["euler"], GRAPH), INPUTS, jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    expected = numpy_forward.continuous(INPUTS, GRAPH, 4, numpy_method("euler"))[..., 9:]
    close(ours, expected, 0.1)
