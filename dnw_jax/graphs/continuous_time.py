"""Continuous time: dZ/dt = f(W Z), solved from t = 0 to 1 with diffrax (section 2.3).

The published code's ReLU works in place, on the solver's own state: each step starts and ends with
the states rectified. The published accuracies were reached so, and ours agree: see `Rectified`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.graphs.nodes import NodeValues
from dnw_jax.graphs.time_graph import update

SOLVERS: Mapping[str, Callable[[], diffrax.AbstractSolver]] = MappingProxyType(
    {
        "dopri5": diffrax.Dopri5,
        "dopri8": diffrax.Dopri8,
        "tsit5": diffrax.Tsit5,
        "bosh3": diffrax.Bosh3,
        "heun": diffrax.Heun,
        "midpoint": diffrax.Midpoint,
        "ralston": diffrax.Ralston,
        "euler": diffrax.Euler,
    }
)
"""diffrax's explicit solvers by the name that `config.model.solver.name` gives them."""

_END = 1.0
# The published solver steps past t = 1 and interpolates back; this only has to be far enough.
_FAR = 16.0


@dataclass(frozen=True)
class ContinuousTime:
    """The state at t = 1 of dZ/dt = f(W Z), where Z(0) holds the inputs and zeros.

    Negative states become zero at the start and after each step (`Rectified`). With the defaults it
    steps exactly as the published code does (torchdiffeq's dopri5): the first step by Hairer's
    heuristic, the others by the error of the whole batch, past t = 1 and interpolated back.

    Attributes:
      solver: a key of `SOLVERS`.
      rtol, atol: tolerances of the adaptive step; the error is the root mean square over the batch.
      step_size: 0 for adaptive steps, else the length of every step.
      max_steps: at most so many steps; if they do not suffice the result is NaN.
    """

    solver: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    step_size: float = 0.0
    max_steps: int = 256

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        nodes: NodeValues,
        weights: Float[Array, "nodes nodes"],
        outputs: slice,
    ) -> Float[Array, "batch height width outputs"]:
        """States of the `outputs` nodes at t = 1."""
        silent = weights.shape[0] - inputs.shape[-1]
        # The solver's error control needs float32, whatever f computes in.
        start = jax.nn.relu(inputs).astype(jnp.float32)
        start = jnp.pad(start, ((0, 0), (0, 0), (0, 0), (0, silent)))
        args = (nodes, weights)
        # One solve for the whole batch, edges and parameters passed as `args`: closing over them
        # would hide them from the adjoint.
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_field),
            Rectified(SOLVERS[self.solver]()),
            y0=start,
            args=args,
            t0=0.0,
            max_steps=self.max_steps,
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=min(self.max_steps, 16)),
            throw=False,
            **self._stepping(start, args),
        )
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        if self.step_size == 0:
            solved |= solution.result == diffrax.RESULTS.event_occurred
        return jnp.where(solved, solution.ys[0][..., outputs], jnp.nan).astype(inputs.dtype)

    def _stepping(self, start: Array, args: tuple[NodeValues, Array]) -> dict[str, Any]:
        if self.step_size > 0:
            return {
                "t1": _END,
                "dt0": self.step_size,
                "stepsize_controller": diffrax.ConstantStepSize(),
                "saveat": diffrax.SaveAt(t1=True),
            }
        solver = SOLVERS[self.solver]()
        order = solver.order(diffrax.ODETerm(_field))
        assert order is not None
        return {
            "t1": _FAR,
            "dt0": first_step(start, args, order, self.rtol, self.atol),
            "stepsize_controller": diffrax.PIDController(self.rtol, self.atol, norm=_rms),
            "saveat": diffrax.SaveAt(ts=[_END]),
            "event": diffrax.Event(lambda t, y, args, **_: t >= _END),
        }


class Rectified(diffrax.AbstractWrappedSolver[Any]):
    """An explicit solver whose states are rectified, negative ones becoming zero, after each step.

    f begins with a ReLU, so f and its error estimate are the same; the state that is carried on,
    and the interpolation between two states, are not.
    """

    solver: diffrax.AbstractSolver

    @property
    def term_structure(self) -> Any:  # noqa: D102
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # noqa: D102
        return self.solver.interpolation_cls

    def order(self, terms: Any) -> int | None:  # noqa: D102
        return self.solver.order(terms)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:  # noqa: D102
        return self.solver.init(terms, t0, t1, y0, args)

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:  # noqa: D102
        return self.solver.func(terms, t0, y0, args)

    def step(  # noqa: D102, PLR0917
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> Any:
        y1, error, dense, solver_state, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        y1 = jax.nn.relu(y1)
        return y1, error, {**dense, "y1": y1}, solver_state, result


def _field(t: Any, state: Array, args: tuple[NodeValues, Array]) -> Array:
    del t  # the wiring does not change with time
    nodes, weights = args
    active = jax.nn.relu(state).astype(weights.dtype)
    return update(active, nodes, weights).astype(state.dtype)


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def first_step(
    start: Array, args: tuple[NodeValues, Array], order: int, rtol: float, atol: float
) -> Float[Array, ""]:
    """Hairer's heuristic for the first step (Solving ODEs I, section II.4), without gradient.

    diffrax takes 0.01 when it is given no first step.
    """
    start, args = lax.stop_gradient((start, args))
    scale = atol + jnp.abs(start) * rtol
    slope = _field(jnp.zeros(()), start, args)
    size, speed = _rms(start / scale), _rms(slope / scale)
    guess = jnp.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    next_slope = _field(guess, start + guess * slope, args)
    bend = _rms((next_slope - slope) / scale) / guess
    steepest = jnp.maximum(speed, bend)
    step = jnp.where(
        steepest <= 1e-15, jnp.maximum(1e-6, guess * 1e-3), (0.01 / steepest) ** (1 / order)
    )
    return jnp.minimum(100 * guess, step)
