"""Continuous time: dZ/dt = f(W Z), solved from t = 0 to 1 (section 2.3)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dnw_jax.config.fixed_steps import num_fixed_steps
from dnw_jax.graphs.nodes import NodeValues
from dnw_jax.ops.ode import solve_ode
from dnw_jax.ops.ode_problem import OdeProblem
from dnw_jax.ops.runge_kutta import SOLVERS
from dnw_jax.ops.send import send


@dataclass(frozen=True)
class ContinuousTime:
    """Returns the state at t = 1 of dZ/dt = f(W Z), where Z(0) holds the inputs and zeros.

    Negative states become zero at the start, at every stage and at the end of each step, because
    the ReLU of the published code works in place on the solver's state. The published accuracies
    were reached this way.

    With the defaults the solver takes the same steps as the published code (torchdiffeq's dopri5):
    Hairer's heuristic sets the first step, the error of the whole batch sets the others, the last
    step goes past t = 1 and is interpolated back. The result for one image therefore depends on
    which other real images share its batch. Padding, which `mask` marks, has no influence.

    Attributes:
      solver: a key of `SOLVERS`.
      rtol, atol: tolerances of an adaptive step; its error is the root mean square over all nodes
        and pixels of the real images in the batch.
      step_size: 0 for adaptive steps, else the length of a step in (0, 1]; the last step is
        shortened to end at t = 1. Euler's method needs a fixed step.
      max_steps: the most steps to try; the result is NaN if they do not suffice.
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
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        """Returns the states of the `outputs` nodes at t = 1; see `Dynamics`."""
        # The solver's error control needs float32, whatever f computes in.
        rectified = jax.nn.relu(inputs).astype(jnp.float32)
        problem = OdeProblem(
            vector_field,
            SOLVERS[self.solver],
            outputs,
            self.rtol,
            self.atol,
            self.step_size,
            num_fixed_steps(self.step_size),
            self.max_steps,
        )
        return solve_ode(problem, rectified, (nodes, weights), mask).astype(inputs.dtype)


def vector_field(
    rectified: Float[Array, "batch height width sources"],
    args: tuple[NodeValues, Float[Array, "nodes nodes"]],
    product: Float[Array, "batch height width nodes"] | None = None,
) -> tuple[Float[Array, "batch height width nodes"], Float[Array, "batch height width nodes"]]:
    """Returns f(W Z) and W Z, computed in the precision of the weights.

    Args:
      rectified: rectified state of the first nodes; all other nodes are zero.
      args: parameters of all nodes, and edge weights.
      product: W Z if it is known; then it is not computed again.
    """
    nodes, weights = args
    sources = slice(rectified.shape[-1])
    sent = nodes.select(sources).convolve(rectified.astype(weights.dtype))
    product = send(sent, weights[sources], product)
    return nodes.normalise(product).astype(rectified.dtype), product
