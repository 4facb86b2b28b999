"""What defines the solution of an ordinary differential equation: the equation and the solver."""

from dataclasses import dataclass

from dnw_jax.ops.runge_kutta import Method, Stepper, VectorField


@dataclass(frozen=True)
class OdeProblem:
    """A differential equation and how to solve it from t = 0 to 1.

    Attributes:
      vector_field: dZ/dt; see `VectorField`.
      method: the Runge-Kutta method; adaptive steps need one with an error estimate.
      outputs: the range of nodes that are read.
      rtol, atol: relative and absolute tolerance of a step's error (root mean square).
      step_size: the length of a fixed step; ignored where `num_steps` is 0.
      num_steps: the number of fixed steps; the last one ends at t = 1. 0 makes the steps adaptive.
      max_steps: the most steps to try, refused ones included.
    """

    vector_field: VectorField
    method: Method
    outputs: slice
    rtol: float
    atol: float
    step_size: float
    num_steps: int
    max_steps: int

    @property
    def adaptive(self) -> bool:
        """Whether the error estimate sets the length of a step."""
        return self.num_steps == 0

    @property
    def stepper(self) -> Stepper:
        """Returns what makes the steps."""
        stop = 1.0 if self.adaptive else None
        return Stepper(self.vector_field, self.method, self.outputs, stop)
