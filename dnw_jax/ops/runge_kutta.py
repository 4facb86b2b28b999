"""One step of an explicit Runge-Kutta method, rectified at its end, by diffrax's coefficients."""

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

# dZ/dt by the rectified state (of the first nodes, if the others are silent) and what else it
# depends on, `args`; with it what took the time: given that as a third argument, a second pass need
# not compute it again.
Field = Callable[..., tuple[Array, Array]]
Known = tuple[Array, ...]  # at each evaluation of a step
State = Float[Array, "batch height width nodes"]
Outputs = Float[Array, "batch height width outputs"]


@dataclass(frozen=True)
class Method:
    """A Butcher tableau.

    Attributes:
      stages: for each stage but the first the shares of the slopes before it.
      weights: the share of each slope in the step.
      errors: the share of each in the estimate of its error; empty: there is none.
      order: of the error per step.
      interpolation: diffrax's polynomial between both ends of a step.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    errors: tuple[float, ...]
    order: int
    interpolation: Callable[..., diffrax.AbstractPath] | None

    @classmethod
    def of(cls, solver: type[diffrax.AbstractERK]) -> "Method":
        """The method of one of diffrax's solvers."""
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
        """How often a step evaluates the field."""
        return len(self.stages) + (not self.ends_with_next_slope)

    @property
    def ends_with_next_slope(self) -> bool:
        """Whether the last stage is the end of the step ("first same as last")."""
        return bool(self.stages) and (*self.stages[-1], 0.0) == self.weights


SOLVERS: Mapping[str, Method] = MappingProxyType(
    {
        "dopri5": Method.of(diffrax.Dopri5),
        "dopri8": Method.of(diffrax.Dopri8),
        "tsit5": Method.of(diffrax.Tsit5),
        "bosh3": Method.of(diffrax.Bosh3),
        "heun": Method.of(diffrax.Heun),
        "midpoint": Method.of(diffrax.Midpoint),
        "ralston": Method.of(diffrax.Ralston),
        "euler": Method(stages=(), weights=(1.0,), errors=(), order=1, interpolation=None),
    }
)
"""Explicit Runge-Kutta methods by the name that `config.model.solver.name` gives them."""


class Step(NamedTuple):
    """The end of a step: rectified state, slope there, and the estimated error of the step.

    Attributes:
      outputs: some nodes as they were at `stop`, if the step goes past it, else at the end.
      known: what the field need not compute again to make this step once more.
    """

    state: State
    slope: State
    outputs: Outputs
    error: State | Float[Array, ""]
    known: Known


@dataclass(frozen=True)
class Stepper:
    """Makes steps of dZ/dt = field(Z).

    Attributes:
      outputs: the nodes that are read at time `stop`.
    """

    field: Field
    method: Method
    outputs: slice
    stop: float

    def step(
        self,
        time: Array,
        length: Array,
        state: State,
        slope: State,
        args: Any,
        *,
        known: Known | None = None,
    ) -> Step:
        """From `time` on, when the state has this `slope`; the field depends on `args`.

        With what is `known` of this step already, only its gradient takes time.
        """
        slopes, end = [slope], state
        evaluated: list[Array] = []

        def evaluate(state: State) -> State:
            slope, costly = self.field(state, args, known and known[len(evaluated)])
            evaluated.append(costly)
            return slope

        for shares in self.method.stages:
            end = rectified_step(shares, length, state, tuple(slopes))
            slopes.append(evaluate(end))
        next_slope = slopes[-1]
        if not self.method.ends_with_next_slope:
            end = rectified_step(self.method.weights, length, state, tuple(slopes))
            next_slope = evaluate(end)
        read = end[..., self.outputs]
        if self.method.interpolation is not None:
            pieces = jnp.stack([length * each[..., self.outputs] for each in slopes])
            between = self.method.interpolation(
                t0=time, t1=time + length, y0=state[..., self.outputs], y1=read, k=pieces
            )
            read = jnp.where(time + length > self.stop, between.evaluate(self.stop), read)
        error = jnp.zeros(())
        if self.method.errors:
            error = length * _weighted(self.method.errors, slopes)
        return Step(end, next_slope, read, error, tuple(evaluated))


def _weighted(shares: Sequence[float], slopes: Sequence[Array]) -> Array:
    pairs = zip(shares, slopes, strict=True)
    return functools.reduce(jnp.add, [share * slope for share, slope in pairs if share])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rectified_step(
    shares: tuple[float, ...], length: Array, state: State, slopes: tuple[State, ...]
) -> State:
    """Rectified `state` + `length` times the weighted slopes, written to memory once."""

    def compute(length: Array, state: Array, *slopes: Array) -> Array:
        return jax.nn.relu(state + length * _weighted(shares, slopes))

    return materialised(compute, length, state, *slopes)


def _rectified_step_forward(
    shares: tuple[float, ...], length: Array, state: State, slopes: tuple[State, ...]
) -> tuple[State, tuple[Array, State]]:
    out = rectified_step(shares, length, state, slopes)
    return out, (length, out)


def _rectified_step_backward(
    shares: tuple[float, ...], residuals: tuple[Array, State], cotangent: State
) -> tuple[Array, State, tuple[State, ...]]:
    length, out = residuals
    # What a ReLU gave has the sign 0 or 1. In memory, as all slopes before take their part of it.
    passed = materialised(lambda cotangent, out: cotangent * jnp.sign(out), cotangent, out)
    return jnp.zeros_like(length), passed, tuple(length * share * passed for share in shares)


rectified_step.defvjp(_rectified_step_forward, _rectified_step_backward)
