"""The state at t = 1 of an ordinary differential equation, with adaptive or fixed steps.

The loop and its gradient are hand-written because the states are large. The backward pass repeats
each accepted step and pulls the cotangents through it. The expensive products of a few steps are
stored; those of the other steps are computed again. diffrax stores the buffers of all stages at
every checkpoint: with its loop and its adjoint a training step of the CIFAR-10 classifier took
14.0 s and 7.6 GB, with this loop 4.3 s and 2.0 GB.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.ops.ode_problem import OdeProblem
from dnw_jax.ops.runge_kutta import Outputs, Product, Scalar, State, Step
from dnw_jax.ops.step_control import Mask, accept_step, first_step

Inputs = Float[Array, "batch height width inputs"]
Count = Int[Array, ""]

_END = 1.0
_MAX_SAVED = 6


class _SolverState(NamedTuple):
    """What the solver's loop carries, and what the backward pass needs to repeat its steps.

    Attributes:
      time: how far the solve is.
      length: how long the next step will be.
      state, slope: at `time`.
      outputs: the output nodes at `time`, or at t = 1 if `time` is later.
      num_tries: steps that were tried.
      num_accepted: steps that were accepted; all arrays below keep only these.
      times, lengths: when each step started and how long it was.
      saved_states: state and slope at the start of each step in `saved_steps`. Every `stride`-th
        step has a slot; other steps use free slots.
      saved_products: the products of the steps in `saved_steps`.
      saved_steps: which step each slot holds; -1 marks a free slot.
      stride: doubles when all slots are full.
    """

    time: Scalar
    length: Scalar
    state: State
    slope: State
    outputs: Outputs
    num_tries: Count
    num_accepted: Count
    times: Float[Array, " max_steps"]
    lengths: Float[Array, " max_steps"]
    saved_states: Float[Array, "max_saved state_or_slope batch height width nodes"]
    saved_products: Float[Array, "max_saved evaluations batch height width nodes"]
    saved_steps: Int[Array, " max_saved"]
    stride: Count

    @property
    def done(self) -> Bool[Array, ""]:
        return self.time >= _END


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def solve_ode(problem: OdeProblem, inputs: Inputs, args: Any, mask: Mask | None = None) -> Outputs:
    """Returns the output nodes at t = 1 of dZ/dt = vector_field(Z, args).

    The state is rectified at every stage and at the end of each step. Adaptive steps go past t = 1
    and interpolate back. One step length serves the whole batch and is not differentiated.

    The gradient is hand-written because JAX cannot differentiate a `while_loop` in reverse. The
    hand-written gradient also stores few states (top of this file). Autodiff through a scan of
    fixed steps takes 1.1 times as long and stores every step (jax 0.10.2,
    `python -m experiments.benchmarks.gradients`).

    Args:
      problem: the equation and the solver's settings.
      inputs: Z(0) of the first nodes, rectified; all other nodes start at zero.
      args: a pytree of arrays that the vector field depends on.
      mask: marks the real examples; only these set the length of adaptive steps. None: all are.

    Returns:
      The states of `problem.outputs`, all NaN if `problem.max_steps` do not suffice.
    """
    return _outputs(_solve(problem, inputs, args, mask)[0])


def _outputs(solved: _SolverState) -> Outputs:
    return jnp.where(solved.done, solved.outputs, jnp.nan)


def _solve(
    problem: OdeProblem, inputs: Inputs, args: Any, mask: Mask | None
) -> tuple[_SolverState, Product]:
    """Returns the solution and the vector field's product at t = 0."""
    num_saved = min(problem.max_steps, _MAX_SAVED)
    slope, product = problem.vector_field(inputs, args)
    num_silent = slope.shape[-1] - inputs.shape[-1]
    start = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, num_silent)))
    length = jnp.asarray(problem.step_size, jnp.float32)
    if problem.adaptive:
        length = first_step(problem, start, slope, args, mask)

    def advance(now: _SolverState) -> _SolverState:
        length, end = now.length, now.time + now.length
        if not problem.adaptive:
            length, end = _fixed_step(problem, now)
        step = problem.stepper.step(now.time, length, now.state, now.slope, args)
        accept, factor = jnp.bool_(True), jnp.ones(())
        if problem.adaptive:
            accept, factor = accept_step(problem, now.state, step, mask)
        slot, stride = _slot_for_step(now)

        def if_accepted(new: Array, old: Array) -> Array:
            return jnp.where(accept, new, old)

        return _SolverState(
            time=if_accepted(end, now.time),
            length=now.length * factor,
            state=if_accepted(step.state, now.state),
            slope=if_accepted(step.slope, now.slope),
            outputs=if_accepted(step.outputs, now.outputs),
            num_tries=now.num_tries + 1,
            num_accepted=now.num_accepted + accept.astype(jnp.int32),
            times=now.times.at[now.num_accepted].set(now.time),
            lengths=now.lengths.at[now.num_accepted].set(length),
            saved_states=_put(now.saved_states, slot, (now.state, now.slope)),
            saved_products=_put(now.saved_products, slot, step.products),
            saved_steps=now.saved_steps.at[slot].set(now.num_accepted),
            stride=stride,
        )

    products_shape = (num_saved, problem.method.num_evaluations, *product.shape)
    solved = lax.while_loop(
        lambda now: ~now.done & (now.num_tries < problem.max_steps) & jnp.isfinite(now.length),
        advance,
        _SolverState(
            time=jnp.zeros(()),
            length=length,
            state=start,
            slope=slope,
            outputs=start[..., problem.outputs],
            num_tries=jnp.int32(0),
            num_accepted=jnp.int32(0),
            times=jnp.zeros(problem.max_steps),
            lengths=jnp.zeros(problem.max_steps),
            saved_states=jnp.zeros((num_saved, 2, *start.shape), start.dtype),
            saved_products=jnp.zeros(products_shape, product.dtype),
            saved_steps=jnp.full(num_saved, -1),
            stride=jnp.int32(1),
        ),
    )
    return solved, product


def _fixed_step(problem: OdeProblem, now: _SolverState) -> tuple[Scalar, Scalar]:
    """Returns the length and the end of the next step.

    Steps are counted in integers, so that rounding errors do not add up.
    """
    is_last = now.num_accepted == problem.num_steps - 1
    end = (now.num_accepted + 1).astype(jnp.float32) * problem.step_size
    length = jnp.where(is_last, _END - now.time, problem.step_size)
    return length, jnp.where(is_last, _END, end)


def _slot_for_step(now: _SolverState) -> tuple[Count, Count]:
    """Returns the slot in which the next step is saved, and the stride.

    The stride doubles when no slot is free. This frees every slot whose step is no multiple of the
    new stride.
    """

    def is_free(stride: Array) -> Array:
        steps = now.saved_steps
        return (steps < 0) | (steps % stride != 0) | (steps == now.num_accepted)

    stride = jnp.where(jnp.any(is_free(now.stride)), now.stride, 2 * now.stride)
    return jnp.argmax(is_free(stride)), stride


def _put(saved: Array, slot: Array, arrays: Sequence[Array]) -> Array:
    for index, array in enumerate(arrays):
        saved = saved.at[slot, index].set(array)
    return saved


_Residuals = tuple[_SolverState, Product, Inputs, Any]


def _solve_forward(
    problem: OdeProblem, inputs: Inputs, args: Any, mask: Mask | None
) -> tuple[Outputs, _Residuals]:
    solved, product = _solve(problem, inputs, args, mask)
    return _outputs(solved), (solved, product, inputs, args)


def _solve_backward(
    problem: OdeProblem, residuals: _Residuals, cotangent: Outputs
) -> tuple[Inputs, Any, None]:
    solved, product_at_start, inputs, args = residuals

    def repeat_step(
        index: Array,
        state: Array,
        slope: Array,
        args: Any,
        products: Sequence[Product] | None = None,
    ) -> Step:
        time, length = solved.times[index], solved.lengths[index]
        return problem.stepper.step(time, length, state, slope, args, products=products)

    def restore(index: Array) -> tuple[Array, Array, tuple[Product, ...]]:
        """Returns state and slope at the start of a step, and the products of the step."""
        slot = jnp.argmax(jnp.where(solved.saved_steps <= index, solved.saved_steps, -1))
        saved_step, (state, slope) = solved.saved_steps[slot], solved.saved_states[slot]
        state, slope = lax.fori_loop(
            saved_step, index, lambda i, at: repeat_step(i, at[0], at[1], args)[:2], (state, slope)
        )
        products = lax.cond(
            saved_step == index,
            lambda: tuple(solved.saved_products[slot]),
            lambda: repeat_step(index, state, slope, args).products,
        )
        return state, slope, products

    def pull_back(
        num_done: Array, cotangents: tuple[State, State, Any]
    ) -> tuple[State, State, Any]:
        state_cotangent, slope_cotangent, args_cotangent = cotangents
        index = solved.num_accepted - 1 - num_done
        state, slope, products = restore(index)
        _, pull_step = jax.vjp(
            lambda z, f, a: repeat_step(index, z, f, a, products)[:3], state, slope, args
        )
        outputs_cotangent = jnp.where(num_done == 0, cotangent, 0)
        state_cotangent, slope_cotangent, added = pull_step(
            (state_cotangent, slope_cotangent, outputs_cotangent)
        )
        return state_cotangent, slope_cotangent, jax.tree.map(jnp.add, args_cotangent, added)

    zeros = jnp.zeros_like(solved.state)
    cotangents = zeros, zeros, jax.tree.map(jnp.zeros_like, args)
    start_cotangent, slope_cotangent, args_cotangent = lax.fori_loop(
        0, solved.num_accepted, pull_back, cotangents
    )
    _, pull_first_slope = jax.vjp(
        lambda *at: problem.vector_field(*at, product_at_start)[0], inputs, args
    )
    added_to_inputs, added_to_args = pull_first_slope(slope_cotangent)
    inputs_cotangent = start_cotangent[..., : inputs.shape[-1]] + added_to_inputs
    return inputs_cotangent, jax.tree.map(jnp.add, args_cotangent, added_to_args), None


solve_ode.defvjp(_solve_forward, _solve_backward)
