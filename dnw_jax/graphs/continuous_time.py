"""Continuous time: dZ/dt = f(W Z), solved from t = 0 to 1 (section 2.3).

The published code's ReLU works in place, on the solver's own state: each step starts and ends with
the states rectified. The published accuracies were reached so, and ours agree.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dnw_jax.graphs.nodes import NodeValues
from dnw_jax.ops.ode import Evolution, evolve
from dnw_jax.ops.runge_kutta import SOLVERS
from dnw_jax.ops.send import send


@dataclass(frozen=True)
class ContinuousTime:
    """The state at t = 1 of dZ/dt = f(W Z), where Z(0) holds the inputs and zeros.

    Negative states become zero at the start and after each step. With the defaults it steps exactly
    as the published code does (torchdiffeq's dopri5): the first step by Hairer's heuristic, the
    others by the error of the whole batch, past t = 1 and interpolated back.

    Attributes:
      solver: a key of `SOLVERS`.
      rtol, atol: tolerances of the adaptive step; the error is the root mean square over the batch.
      step_size: 0 for adaptive steps, else the length of every step; Euler's method needs one.
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
        # The solver's error control needs float32, whatever f computes in.
        active = jax.nn.relu(inputs).astype(jnp.float32)
        how = Evolution(
            field,
            SOLVERS[self.solver],
            outputs,
            self.rtol,
            self.atol,
            self.step_size,
            self.max_steps,
        )
        return evolve(how, active, (nodes, weights)).astype(inputs.dtype)


def field(
    active: Array, args: tuple[NodeValues, Array], received: Array | None = None
) -> tuple[Array, Array]:
    """f(W Z) in the precision of the weights, and W Z, for a second pass.

    `active` is the rectified state of the first nodes; the others are silent.
    """
    nodes, weights = args
    sources = slice(active.shape[-1])
    sent = nodes.of(sources).convolve(active.astype(weights.dtype))
    received = send(sent, weights[sources], received)
    return nodes.normalise(received).astype(active.dtype), received
