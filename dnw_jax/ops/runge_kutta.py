"""One step of an explicit Runge-Kutta method, rectified at every stage and at its end.

The coefficients and the interpolations are diffrax's. The rectification is that of the published
code: its ReLU works in place on the states that the solver passes to the network, so that negative
states become zero. The published accuracies cannot be met otherwise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dnw_jax.ops.barriers import materialised

State = Float[Array, "batch height width nodes"]
Outputs = Float[Array, "batch height width outputs"]
Scalar = Float[Array, ""]
Product = Float[Array, "batch height width nodes"]

VectorField = Callable[..., tuple[State, Product]]
"""`vector_field(state, args, product=None)` returns dZ/dt and its most expensive intermediate.

`state` is the rectified state of the first nodes; all other nodes are zero. `args` is a pytree that
the field depends on. The intermediate is the product of planes with edge weights. A caller that
still has it passes it as `product`; the field then uses it instead of computing it.
"""


@dataclass(frozen=True)
class Method:
    """A Butcher tableau.

    Attributes:
      stages: for each stage after the first, the coefficients of the slopes before it.
      weights: the coefficient of each slope in the step.
      errors: the coefficient of each slope in the error estimate; empty if there is no estimate.
      order: the order of the method.
      interpolation: diffrax's polynomial between both ends of a step; None if there is no error
        estimate, because then no step is adaptive and none ends after t = 1.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    errors: tuple[float, ...]
    order: int
    interpolation: Callable[..., diffrax.AbstractPath] | None

    @classmethod
    def from_diffrax(cls, solver: type[diffrax.AbstractERK]) -> "Method":
        """Returns the method of one of diffrax's solvers."""
        tableau = solver.tableau
        order = solver().order(diffrax.ODETerm(lambda t, y, args: y))
        assert order is not None
        return cls(
            tuple(tuple(map(float, row)) for row in tableau.a_lower),
            tuple(map(float, tableau.b_sol)),
            tuple(map(float, tableau.b_error)),
            order,
            solver.interpolation_cls,
        )

    @property
    def num_evaluations(self) -> int:
        """How often a step evaluates the vector field."""
        return len(self.stages) + (not self.ends_with_next_slope)

    @property
    def ends_with_next_slope(self) -> bool:
        """Whether the last stage is the end of the step ("first same as last")."""
        return bool(self.stages) and (*self.stages[-1], 0.0) == self.weights


SOLVERS: Mapping[str, Method] = MappingProxyType(
    {
        "dopri5": Method.from_diffrax(diffrax.Dopri5),
        "tsit5": Method.from_diffrax(diffrax.Tsit5),
        "euler": Method(stages=(), weights=(1.0,), errors=(), order=1, interpolation=None),
    }
)
"""Explicit Runge-Kutta methods by the name that `config.model.solver.name` gives them."""


class Step(NamedTuple):
    """The result of one step.

    Attributes:
      state: rectified state at the end of the step.
      slope: dZ/dt at `state`.
      outputs: the output nodes at `Stepper.stop` if the step goes past it, else at the end.
      error: the estimated error of `state`; a scalar zero if the method has no estimate.
      products: the vector field's product in each evaluation of the step.
    """

    state: State
    slope: State
    outputs: Outputs
    error: State | Scalar
    products: tuple[Product, ...]


@dataclass(frozen=True)
class Stepper:
    """Makes steps of dZ/dt = vector_field(Z).

    Attributes:
      vector_field: see `VectorField`.
      method: the Runge-Kutta method.
      outputs: the range of nodes that are read at the end of the solve.
      stop: the time at which the outputs are read when a step goes past it; None if no step does.
    """

    vector_field: VectorField
    method: Method
    outputs: slice
    stop: float | None

    def step(
        self,
        time: Scalar,
        length: Scalar,
        state: State,
        slope: State,
        args: Any,
        *,
        products: Sequence[Product] | None = None,
    ) -> Step:
        """Makes the step from `time` to `time + length`.

        Args:
          time: when the step starts.
          length: how long the step is.
          state: rectified state at `time`.
          slope: dZ/dt at `state`.
          args: what the vector field depends on besides the state.
          products: the products of this step if it was made before; they are not computed again.
            This makes the second pass, for the gradient, cheap.
        """
        slopes, end = [slope], state
        new_products: list[Array] = []

        def evaluate(state: State) -> State:
            saved = None if products is None else products[len(new_products)]
            slope, product = self.vector_field(state, args, saved)
            new_products.append(product)
            return slope

        for coefficients in self.method.stages:
            end = rectified_step(coefficients, length, state, tuple(slopes))
            slopes.append(evaluate(end))
        next_slope = slopes[-1]
        if not self.method.ends_with_next_slope:
            end = rectified_step(self.method.weights, length, state, tuple(slopes))
            next_slope = evaluate(end)
        outputs = end[..., self.outputs]
        if self.stop is not None:
            outputs = self._outputs_at_stop(time, length, state, outputs, slopes)
        error = jnp.zeros(())
        if self.method.errors:
            error = length * _weighted_sum(self.method.errors, slopes)
        return Step(end, next_slope, outputs, error, tuple(new_products))

    def _outputs_at_stop(
        self, time: Scalar, length: Scalar, state: State, outputs: Outputs, slopes: list[State]
    ) -> Outputs:
        """Returns `outputs` if the step ends before `stop`, else interpolates them at `stop`."""
        assert self.method.interpolation is not None
        assert self.stop is not None
        end = time + length
        polynomial = self.method.interpolation(
            t0=time,
            t1=end,
            y0=state[..., self.outputs],
            y1=outputs,
            k=jnp.stack([length * slope[..., self.outputs] for slope in slopes]),
        )
        # `where` drops the polynomial of a step that ends before `stop`, but differentiates it. Far
        # outside of a tiny step it overflows, and 0 * inf would make the gradient NaN.
        inside = jnp.minimum(self.stop, end)
        return jnp.where(end > self.stop, polynomial.evaluate(inside), outputs)


def _weighted_sum(coefficients: Sequence[float], slopes: Sequence[Array]) -> Array:
    pairs = zip(coefficients, slopes, strict=True)
    return functools.reduce(jnp.add, [factor * slope for factor, slope in pairs if factor])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rectified_step(
    coefficients: tuple[float, ...], length: Scalar, state: State, slopes: tuple[State, ...]
) -> State:
    """Returns relu(state + length * sum of coefficients * slopes).

    The step length gets no gradient.

    The gradient is hand-written so that the masked cotangent is written to memory once for the
    state and all slopes. Autodiff takes 1.9 times as long on CPU
    (jax 0.10.2, `python -m experiments.benchmarks.gradients`).
    """

    def compute(length: Array, state: Array, *slopes: Array) -> Array:
        return jax.nn.relu(state + length * _weighted_sum(coefficients, slopes))

    return materialised(compute, length, state, *slopes)


def _rectified_step_forward(
    coefficients: tuple[float, ...], length: Scalar, state: State, slopes: tuple[State, ...]
) -> tuple[State, tuple[Scalar, State]]:
    end = rectified_step(coefficients, length, state, slopes)
    return end, (length, end)


def _rectified_step_backward(
    coefficients: tuple[float, ...], residuals: tuple[Scalar, State], cotangent: State
) -> tuple[Scalar, State, tuple[State, ...]]:
    length, end = residuals
    # The sign of a rectified value is 0 or 1. The product is written to memory because the
    # cotangents of the state and of all slopes read it.
    state_cotangent = materialised(lambda cotangent, end: cotangent * jnp.sign(end), cotangent, end)
    slope_cotangents = tuple(length * factor * state_cotangent for factor in coefficients)
    return jnp.zeros_like(length), state_cotangent, slope_cotangents


rectified_step.defvjp(_rectified_step_forward, _rectified_step_backward)
