"""The length of adaptive steps: the first by Hairer's heuristic, the others by the error estimate.

Both do what torchdiffeq does, which the published code uses. One length serves the whole batch.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from dnw_jax.ops.ode_problem import OdeProblem
from dnw_jax.ops.runge_kutta import Scalar, State, Step, rectified_step

Mask = Bool[Array, " batch"]

_SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.9, 0.2, 10.0


def first_step(
    problem: OdeProblem, start: State, slope: State, args: Any, mask: Mask | None = None
) -> Scalar:
    """Returns the length of the first step (Hairer et al., Solving ODEs I, section II.4).

    Args:
      problem: the equation and the solver's settings.
      start: rectified state at t = 0.
      slope: dZ/dt at `start`.
      args: what the vector field depends on besides the state.
      mask: marks the real examples; None: all are.
    """
    scale = problem.atol + jnp.abs(start) * problem.rtol
    size, speed = _root_mean_square(start / scale, mask), _root_mean_square(slope / scale, mask)
    guess = jnp.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    end = rectified_step((1.0,), guess, start, (slope,))
    next_slope = problem.vector_field(end, args)[0]
    curvature = _root_mean_square((next_slope - slope) / scale, mask) / guess
    steepest = jnp.maximum(speed, curvature)
    step = jnp.where(
        steepest <= 1e-15,
        jnp.maximum(1e-6, guess * 1e-3),
        (0.01 / steepest) ** (1 / problem.method.order),
    )
    return jnp.minimum(100 * guess, step)


def accept_step(
    problem: OdeProblem, state: State, step: Step, mask: Mask | None
) -> tuple[Bool[Array, ""], Scalar]:
    """Returns whether a step is accepted, and the factor for the length of the next one.

    Args:
      problem: the equation and the solver's settings.
      state: rectified state at the start of the step.
      step: the step.
      mask: marks the real examples; None: all are.
    """
    largest = jnp.maximum(jnp.abs(state), jnp.abs(step.state))
    error = _root_mean_square(step.error / (problem.atol + problem.rtol * largest), mask)
    accept = error < 1
    factor = _SAFETY * error ** (-1 / problem.method.order)
    least, most = jnp.where(accept, 1, _MIN_FACTOR), jnp.where(accept, _MAX_FACTOR, _SAFETY)
    return accept, jnp.clip(factor, least, most)


def _root_mean_square(values: State, mask: Mask | None) -> Scalar:
    """Over the examples that `mask` marks; 0 if it marks none."""
    if mask is None:
        return jnp.sqrt(jnp.mean(jnp.square(values)))
    of_examples = jnp.mean(jnp.square(values), (1, 2, 3))
    total = jnp.sum(jnp.where(mask, of_examples, 0))
    return jnp.sqrt(total / jnp.maximum(jnp.sum(mask, dtype=values.dtype), 1))
