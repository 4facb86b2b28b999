"""The state at t = 1 of an ordinary differential equation, with adaptive or fixed steps.

diffrax has such a loop for everybody; this one is for large states. Going backwards it makes each
accepted step once more and pulls the cotangents through it. What is costly in a step is saved, of a
few steps; of the others it is computed again. diffrax keeps the buffers of all stages at every
checkpoint: three times as slow here, with several times the memory.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.ops.runge_kutta import (
    Field,
    Known,
    Method,
    Outputs,
    State,
    Step,
    Stepper,
    rectified_step,
)

Inputs = Float[Array, "batch height width inputs"]

_END = 1.0
_MAX_SAVED = 6
_SAFETY, _MOST_SHRINKAGE, _MOST_GROWTH = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class Evolution:
    """How to get to t = 1.

    Attributes:
      field: dZ/dt of a rectified Z and of what else it depends on.
      outputs: the nodes that are read.
      rtol, atol: what the root mean square of a step's error may be.
      step_size: 0 for adaptive steps, else the length of every step.
      max_steps: at most so many tries.
    """

    field: Field
    method: Method
    outputs: slice
    rtol: float
    atol: float
    step_size: float
    max_steps: int

    @property
    def stepper(self) -> Stepper:
        """Makes the steps."""
        return Stepper(self.field, self.method, self.outputs, _END)


class _Progress(NamedTuple):
    """How far a solution is, and what is needed to make its steps again.

    Of each step when and how long it was; of some the state and the slope before it and what is
    known of it: of every `stride`-th, and of others while there is room. `owners`: of which step.
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
    saved: Float[Array, "max_saved state_or_slope batch height width nodes"]
    known: Float[Array, "max_saved evaluations batch height width nodes"]
    owners: Int[Array, " max_saved"]
    stride: Int[Array, ""]

    @property
    def done(self) -> Bool[Array, ""]:
        return self.time >= _END


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def evolve(how: Evolution, inputs: Inputs, args: Any) -> Outputs:
    """The `outputs` nodes at t = 1 of dZ/dt = field(Z), rectified at t = 0 and after each step.

    `inputs` is Z(0) of the first nodes, rectified already; the others start at zero. Adaptive steps
    go past t = 1 and interpolate back. NaN if `max_steps` do not suffice. Step lengths are not
    differentiated.
    """
    return _read(_solve(how, inputs, args)[0])


def _read(progress: _Progress) -> Array:
    return jnp.where(progress.done, progress.outputs, jnp.nan)


def _solve(how: Evolution, inputs: Inputs, args: Any) -> tuple[_Progress, Array]:
    """The solution, and what is known of the field at its start."""
    adaptive = how.step_size == 0
    num_saved, count = min(how.max_steps, _MAX_SAVED), jnp.int32
    slope, known = how.field(inputs, args)
    silent = slope.shape[-1] - inputs.shape[-1]
    start = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, silent)))
    first = first_step(how, start, slope, args) if adaptive else jnp.asarray(how.step_size)

    def advance(now: _Progress) -> _Progress:
        length = now.length if adaptive else jnp.minimum(now.length, _END - now.time)
        step = how.stepper.step(now.time, length, now.state, now.slope, args)
        accept, factor = _judged(how, now.state, step) if adaptive else (True, 1.0)
        slot, stride = _free_slot(now)

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(accept, new, old)

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
            saved=_put(now.saved, slot, (now.state, now.slope)),
            known=_put(now.known, slot, step.known),
            owners=now.owners.at[slot].set(now.accepted),
            stride=stride,
        )

    done = lax.while_loop(
        lambda now: ~now.done & (now.tries < how.max_steps) & jnp.isfinite(now.length),
        advance,
        _Progress(
            time=jnp.zeros(()),
            length=first,
            state=start,
            slope=slope,
            outputs=start[..., how.outputs],
            tries=count(0),
            accepted=count(0),
            times=jnp.zeros(how.max_steps),
            lengths=jnp.zeros(how.max_steps),
            saved=jnp.zeros((num_saved, 2, *start.shape), start.dtype),
            known=jnp.zeros((num_saved, how.method.num_evaluations, *known.shape), known.dtype),
            owners=jnp.full(num_saved, -1),
            stride=count(1),
        ),
    )
    return done, known


def _judged(how: Evolution, state: State, step: Step) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether the step is good enough, and how much longer the next one may be."""
    largest = jnp.maximum(jnp.abs(state), jnp.abs(step.state))
    error = _rms(step.error / (how.atol + how.rtol * largest))
    accept = error < 1
    factor = _SAFETY * error ** (-1 / how.method.order)
    least, most = jnp.where(accept, 1, _MOST_SHRINKAGE), jnp.where(accept, _MOST_GROWTH, _SAFETY)
    return accept, jnp.clip(factor, least, most)


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _free_slot(now: _Progress) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Where the next step may be saved, and the stride: twice as long once all slots are full."""

    def free(stride: Array) -> Array:
        return (now.owners < 0) | (now.owners % stride != 0) | (now.owners == now.accepted)

    stride = jnp.where(jnp.any(free(now.stride)), now.stride, 2 * now.stride)
    return jnp.argmax(free(stride)), stride


def _put(saved: Array, slot: Array, arrays: Sequence[Array]) -> Array:
    for index, each in enumerate(arrays):
        saved = saved.at[slot, index].set(each)
    return saved


def _evolve_forward(
    how: Evolution, inputs: Inputs, args: Any
) -> tuple[Array, tuple[_Progress, Array, Inputs, Any]]:
    progress, known = _solve(how, inputs, args)
    return _read(progress), (progress, known, inputs, args)


def _evolve_backward(
    how: Evolution,
    residuals: tuple[_Progress, Array, Inputs, Any],
    cotangent: Array,
) -> tuple[Inputs, Any]:
    done, known_at_start, inputs, args = residuals

    def again(
        index: Array, state: Array, slope: Array, args: Any, known: Known | None = None
    ) -> Step:
        time, length = done.times[index], done.lengths[index]
        return how.stepper.step(time, length, state, slope, args, known=known)

    def before(index: Array) -> tuple[Array, Array, Known]:
        """State and slope before a step, and what is known of it."""
        slot = jnp.argmax(jnp.where(done.owners <= index, done.owners, -1))
        saved, (state, slope) = done.owners[slot], done.saved[slot]
        state, slope = lax.fori_loop(
            saved, index, lambda i, now: again(i, now[0], now[1], args)[:2], (state, slope)
        )
        known = lax.cond(
            saved == index,
            lambda: tuple(done.known[slot]),
            lambda: again(index, state, slope, args).known,
        )
        return state, slope, known

    def pull(count: Array, carry: tuple[State, State, Any]) -> tuple[State, State, Any]:
        to_state, to_slope, to_args = carry
        index = done.accepted - 1 - count
        state, slope, known = before(index)
        _, pull_step = jax.vjp(lambda z, f, a: again(index, z, f, a, known)[:3], state, slope, args)
        to_outputs = jnp.where(count == 0, cotangent, 0)
        to_state, to_slope, more = pull_step((to_state, to_slope, to_outputs))
        return to_state, to_slope, jax.tree.map(jnp.add, to_args, more)

    nothing = jnp.zeros_like(done.state)
    carry = nothing, nothing, jax.tree.map(jnp.zeros_like, args)
    to_start, to_slope, to_args = lax.fori_loop(0, done.accepted, pull, carry)
    _, pull_first_slope = jax.vjp(lambda *at: how.field(*at, known_at_start)[0], inputs, args)
    more_to_inputs, more_to_args = pull_first_slope(to_slope)
    to_inputs = to_start[..., : inputs.shape[-1]] + more_to_inputs
    return to_inputs, jax.tree.map(jnp.add, to_args, more_to_args)


evolve.defvjp(_evolve_forward, _evolve_backward)


def first_step(how: Evolution, start: State, slope: State, args: Any) -> Float[Array, ""]:
    """Hairer's heuristic for the first step (Solving ODEs I, section II.4); `slope`: at `start`."""
    scale = how.atol + jnp.abs(start) * how.rtol
    size, speed = _rms(start / scale), _rms(slope / scale)
    guess = jnp.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    next_slope = how.field(rectified_step((1.0,), guess, start, (slope,)), args)[0]
    bend = _rms((next_slope - slope) / scale) / guess
    steepest = jnp.maximum(speed, bend)
    step = jnp.where(
        steepest <= 1e-15,
        jnp.maximum(1e-6, guess * 1e-3),
        (0.01 / steepest) ** (1 / how.method.order),
    )
    return jnp.minimum(100 * guess, step)
