"""Explicit Runge-Kutta methods with adaptive steps, differentiated step by step.

The coefficients and interpolations are diffrax's; the loop is our own. Going backwards it makes each
accepted step once more and pulls the cotangents through it: two evaluations of the field forwards
and one backwards, and memory for one step and a few states. diffrax's loop keeps the buffers of all
stages at every checkpoint, which took four times as long here.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.graphs.materialise import materialised

# Of a rectified state; a function of the state and of what it depends on, `args`.
Field = Callable[[Array, Any], Array]
State = Float[Array, "batch height width nodes"]
Outputs = Float[Array, "batch height width outputs"]

_END = 1.0
_MAX_SAVED = 8
_SAFETY, _MOST_SHRINKAGE, _MOST_GROWTH = 0.9, 0.2, 10.0


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
    def ends_with_next_slope(self) -> bool:
        """Whether the last stage is the end of the step ("first same as last")."""
        return bool(self.stages) and (*self.stages[-1], 0.0) == self.weights


@dataclass(frozen=True)
class Stepping:
    """How long steps are.

    Attributes:
      step_size: 0: as long as `rtol` and `atol` allow the root mean square of the error.
      max_steps: at most so many tries.
    """

    rtol: float
    atol: float
    step_size: float
    max_steps: int


class _Step(NamedTuple):
    """The end of a step: rectified state, slope there, and its estimated error.

    `outputs` are those at t = 1 if the step reaches so far, else at its end.
    """

    state: State
    slope: State
    outputs: Outputs
    error: State | Float[Array, ""]


class _Progress(NamedTuple):
    """How far a solution is, and of each accepted step what is needed to make it again.

    States before a step are saved for every `stride`-th alone; `owners` says whose a slot is.
    """

    time: Float[Array, ""]
    length: Float[Array, ""]
    state: State
    slope: State
    outputs: Outputs
    tries: Int[Array, ""]
    accepted: Int[Array, ""]
    times: Float[Array, " max_steps"]
    lengths: Float[Array, " max_steps"]
    saved: Float[Array, "max_saved batch height width nodes"]
    owners: Int[Array, " max_saved"]
    stride: Int[Array, ""]

    @property
    def done(self) -> Bool[Array, ""]:
        return self.time >= _END


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def evolve(
    field: Field, method: Method, stepping: Stepping, outputs: slice, start: State, args: Any
) -> Outputs:
    """The `outputs` nodes at t = 1 of dZ/dt = field(Z), rectified at t = 0 and after each step.

    `start` is Z(0), rectified already. Adaptive steps go past t = 1 and interpolate back. NaN if
    `max_steps` do not suffice. Step lengths are not differentiated.
    """
    return _read(_solve(field, method, stepping, outputs, start, args))


def _read(progress: _Progress) -> Array:
    return jnp.where(progress.done, progress.outputs, jnp.nan)


def _solve(
    field: Field, method: Method, stepping: Stepping, outputs: slice, start: State, args: Any
) -> _Progress:
    adaptive = stepping.step_size == 0
    num_saved, count = min(stepping.max_steps, _MAX_SAVED), jnp.int32
    slope, length = field(start, args), jnp.asarray(stepping.step_size, start.dtype)
    if adaptive:
        length = first_step(field, start, slope, args, method.order, stepping)

    def advance(now: _Progress) -> _Progress:
        length = now.length if adaptive else jnp.minimum(now.length, _END - now.time)
        step = _step(field, method, outputs, now.time, length, now.state, now.slope, args)
        accept, factor = _judged(method, stepping, now.state, step) if adaptive else (True, 1.0)
        saved, owners, stride = _save(now)
        kept = functools.partial(jnp.where, accept)
        end = now.time + length
        if not adaptive:  # what rounding leaves is no step
            end = jnp.where(end > _END - 1e-6, _END, end)
        return _Progress(
            time=kept(end, now.time),
            length=now.length * factor,
            state=kept(step.state, now.state),
            slope=kept(step.slope, now.slope),
            outputs=kept(step.outputs, now.outputs),
            tries=now.tries + 1,
            accepted=now.accepted + jnp.asarray(accept, jnp.int32),
            times=now.times.at[now.accepted].set(now.time),
            lengths=now.lengths.at[now.accepted].set(length),
            saved=saved,
            owners=owners,
            stride=stride,
        )

    return lax.while_loop(
        lambda now: ~now.done & (now.tries < stepping.max_steps) & jnp.isfinite(now.length),
        advance,
        _Progress(
            time=jnp.zeros(()),
            length=length,
            state=start,
            slope=slope,
            outputs=start[..., outputs],
            tries=count(0),
            accepted=count(0),
            times=jnp.zeros(stepping.max_steps),
            lengths=jnp.zeros(stepping.max_steps),
            saved=jnp.zeros((num_saved, *start.shape), start.dtype),
            owners=jnp.full(num_saved, -1),
            stride=count(1),
        ),
    )


def _step(
    field: Field,
    method: Method,
    outputs: slice,
    time: Array,
    length: Array,
    state: State,
    slope: State,
    args: Any,
) -> _Step:
    slopes, end = [slope], state
    for shares in method.stages:
        end = _rectified_step(shares, length, state, tuple(slopes))
        slopes.append(field(end, args))
    next_slope = slopes[-1]
    if not method.ends_with_next_slope:
        end = _rectified_step(method.weights, length, state, tuple(slopes))
        next_slope = field(end, args)
    read = end[..., outputs]
    if method.errors:
        pieces = jnp.stack([length * each[..., outputs] for each in slopes])
        between = method.interpolation(
            t0=time, t1=time + length, y0=state[..., outputs], y1=read, k=pieces
        )
        read = jnp.where(time + length > _END, between.evaluate(_END), read)
    error = length * _weighted(method.errors, slopes) if method.errors else jnp.zeros(())
    return _Step(end, next_slope, read, error)


def _weighted(shares: Sequence[float], slopes: Sequence[Array]) -> Array:
    pairs = zip(shares, slopes, strict=True)
    return functools.reduce(jnp.add, [share * slope for share, slope in pairs if share])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rectified_step(
    shares: tuple[float, ...], length: Array, state: State, slopes: tuple[State, ...]
) -> State:
    """Rectified `state` + `length` times the weighted slopes, written to memory once."""

    def compute(length: Array, state: Array, *slopes: Array) -> Array:
        return jax.nn.relu(state + length * _weighted(shares, slopes))

    return materialised(compute, length, state, *slopes)


def _rectified_step_forward(
    shares: tuple[float, ...], length: Array, state: State, slopes: tuple[State, ...]
) -> tuple[State, tuple[Array, State]]:
    out = _rectified_step(shares, length, state, slopes)
    return out, (length, out)


def _rectified_step_backward(
    shares: tuple[float, ...], residuals: tuple[Array, State], cotangent: State
) -> tuple[Array, State, tuple[State, ...]]:
    length, out = residuals
    # What a ReLU gave has the sign 0 or 1. In memory, as all slopes before take their part of it.
    passed = materialised(lambda cotangent, out: cotangent * jnp.sign(out), cotangent, out)
    return jnp.zeros_like(length), passed, tuple(length * share * passed for share in shares)


_rectified_step.defvjp(_rectified_step_forward, _rectified_step_backward)


def _judged(
    method: Method, stepping: Stepping, state: State, step: _Step
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether the step is good enough, and how much longer the next one may be."""
    largest = jnp.maximum(jnp.abs(state), jnp.abs(step.state))
    error = _rms(step.error / (stepping.atol + stepping.rtol * largest))
    accept = error < 1
    factor = _SAFETY * error ** (-1 / method.order)
    least, most = jnp.where(accept, 1, _MOST_SHRINKAGE), jnp.where(accept, _MOST_GROWTH, _SAFETY)
    return accept, jnp.clip(factor, least, most)


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _save(now: _Progress) -> tuple[Array, Array, Array]:
    """Saves the state before this step, if it is due; twice as seldom once the slots are full."""

    def free(stride: Array) -> Array:
        return (now.owners < 0) | (now.owners % stride != 0) | (now.owners == now.accepted)

    due = now.accepted % now.stride == 0
    stride = jnp.where(due & ~jnp.any(free(now.stride)), 2 * now.stride, now.stride)
    slot = jnp.argmax(free(stride))
    due = now.accepted % stride == 0
    saved = now.saved.at[slot].set(jnp.where(due, now.state, now.saved[slot]))
    return saved, now.owners.at[slot].set(jnp.where(due, now.accepted, now.owners[slot])), stride


def _evolve_forward(
    field: Field, method: Method, stepping: Stepping, outputs: slice, start: State, args: Any
) -> tuple[Array, tuple[_Progress, State, Any]]:
    progress = _solve(field, method, stepping, outputs, start, args)
    return _read(progress), (progress, start, args)


def _evolve_backward(
    field: Field,
    method: Method,
    stepping: Stepping,
    outputs: slice,
    residuals: tuple[_Progress, State, Any],
    cotangent: Array,
) -> tuple[State, Any]:
    done, start, args = residuals

    def again(index: Array, state: Array, slope: Array, args: Any) -> tuple[Array, Array, Array]:
        time, length = done.times[index], done.lengths[index]
        return _step(field, method, outputs, time, length, state, slope, args)[:3]

    def state_before(index: Array) -> State:
        saved = index - index % done.stride
        state = done.saved[jnp.argmax(done.owners == saved)]
        return lax.fori_loop(
            saved, index, lambda i, state: again(i, state, field(state, args), args)[0], state
        )

    def pull(count: Array, carry: tuple[State, State, Any]) -> tuple[State, State, Any]:
        to_state, to_slope, to_args = carry
        index = done.accepted - 1 - count
        state = state_before(index)
        _, pull_step = jax.vjp(functools.partial(again, index), state, field(state, args), args)
        to_outputs = jnp.where(count == 0, cotangent, 0)
        to_state, to_slope, more = pull_step((to_state, to_slope, to_outputs))
        return to_state, to_slope, jax.tree.map(jnp.add, to_args, more)

    nothing = jnp.zeros_like(start)
    carry = nothing, nothing, jax.tree.map(jnp.zeros_like, args)
    to_start, to_slope, to_args = lax.fori_loop(0, done.accepted, pull, carry)
    _, pull_first_slope = jax.vjp(field, start, args)
    more_to_start, more_to_args = pull_first_slope(to_slope)
    return to_start + more_to_start, jax.tree.map(jnp.add, to_args, more_to_args)


evolve.defvjp(_evolve_forward, _evolve_backward)


def first_step(
    field: Field, start: State, slope: State, args: Any, order: int, stepping: Stepping
) -> Float[Array, ""]:
    """Hairer's heuristic for the first step (Solving ODEs I, section II.4); `slope`: at `start`."""
    scale = stepping.atol + jnp.abs(start) * stepping.rtol
    size, speed = _rms(start / scale), _rms(slope / scale)
    guess = jnp.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    next_slope = field(_rectified_step((1.0,), guess, start, (slope,)), args)
    bend = _rms((next_slope - slope) / scale) / guess
    steepest = jnp.maximum(speed, bend)
    step = jnp.where(
        steepest <= 1e-15, jnp.maximum(1e-6, guess * 1e-3), (0.01 / steepest) ** (1 / order)
    )
    return jnp.minimum(100 * guess, step)
