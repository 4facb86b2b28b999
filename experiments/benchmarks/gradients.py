"""The hand-written gradients beside autodiff of the same forward pass.

    python -m experiments.benchmarks.gradients

Each case times value and gradient in a `fori_loop`, as training runs them, with the hand-written
rule and without; both take turns. Times are CPU time of all threads, which other programs on the
machine disturb less than wall time; so the ratios hold for CPUs only. A ratio above 1 says how many
times as much autodiff takes.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dnw_jax.graphs import blocked
from dnw_jax.graphs.continuous_time import vector_field
from dnw_jax.graphs.nodes import NodeValues
from dnw_jax.ops import convolution
from dnw_jax.ops.barriers import barrier
from dnw_jax.ops.depthwise import depthwise_conv3x3
from dnw_jax.ops.norms import batch_norm, instance_norm
from dnw_jax.ops.ode import solve_ode
from dnw_jax.ops.ode_problem import OdeProblem
from dnw_jax.ops.runge_kutta import SOLVERS, rectified_step
from dnw_jax.ops.send import send
from dnw_jax.platform.large_pages import restart_with_large_pages
from experiments.benchmarks.depthwise import in_turn
from experiments.benchmarks.flags import timing_parser
from experiments.benchmarks.report import Report

_NUM_STEPS = 4  # of the ODE solve


class Case(NamedTuple):
    """A function with a hand-written gradient, the same one without, and their arguments."""

    ours: Callable[..., Any]
    autodiff: Callable[..., Any]
    arguments: tuple[Any, ...]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the times of each case, then a Markdown table of ratios."""
    flags = timing_parser(__doc__, turns=9).parse_args(argv)
    report = Report(flags.json)
    lines = ["| gradient | autodiff / hand-written |", "|---|---|"]
    for name, case in cases().items():
        calls = {
            "ours": functools.partial(_looped(case.ours), case.arguments, 2),
            "autodiff": functools.partial(_looped(case.autodiff), case.arguments, 2),
        }
        timings = in_turn(calls, flags.turns, clock=time.process_time)
        report.add(name, timings)
        lines.append(f"| {name} | {timings['autodiff'].median / timings['ours'].median:.2f} |")
    print("\n".join(["", *lines]))


def cases() -> dict[str, Case]:
    """Returns the cases by name, with the sizes of the tiny classifiers and of a ResNet."""
    planes, weights = _normal(128, 8, 8, 192), _normal(192, 192)
    nodes = (jnp.ones(192), jnp.zeros(192))
    image, kernel = _normal(16, 16, 16, 64), _normal(3, 3, 64, 64)
    sizes = (32, 192, 192, 192, 192)
    rectangles = _rectangles(sizes)
    slopes = tuple(_normal(128, 8, 8, 192) for _ in range(5))
    coefficients = SOLVERS["dopri5"].stages[4]

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda state, *slopes: function(coefficients, jnp.float32(0.1), state, slopes)

    def normed(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(*args, True)[0]

    def strided(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda planes, weights: function(jax.nn.relu(planes)[:, ::2, ::2]) @ weights

    return {
        "depthwise_conv3x3": _case(depthwise_conv3x3, planes, _normal(3, 3, 192)),
        "conv2d": Case(
            lambda planes, kernel: convolution.conv2d(planes, kernel, 1, 1),
            lambda planes, kernel: convolution._correlate(planes, kernel, 1, 1),
            (image, kernel),
        ),
        "send": _case(send, planes, weights),
        "instance_norm": _case(instance_norm, planes, *nodes),
        "batch_norm": Case(normed(batch_norm), normed(batch_norm.fun), (planes, *nodes)),
        "rectified_step": Case(step(rectified_step), step(rectified_step.fun), (planes, *slopes)),
        "blocked._cut": Case(
            lambda matrix: blocked._cut(rectangles, matrix),
            lambda matrix: blocked._cut.fun(rectangles, matrix),
            (_normal(sum(sizes), sum(sizes)),),
        ),
        "barrier": Case(strided(barrier), strided(lax.optimization_barrier), (planes, weights)),
        "solve_ode": _solve(),
    }


def _normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape) / shape[-1] ** 0.5


def _case(function: Any, *arguments: Any) -> Case:
    return Case(function, function.fun, arguments)


def _rectangles(sizes: Sequence[int]) -> blocked.Rectangles:
    ends = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    return tuple(
        (ends[source], ends[source + 1], ends[target], ends[target + 1])
        for target in range(len(sizes))
        for source in range(target)
    )


def _solve() -> Case:
    """Fixed steps, because autodiff cannot go back through a loop of unknown length."""
    num_nodes = 192
    parameters = NodeValues(jnp.ones(num_nodes), jnp.zeros(num_nodes), _normal(3, 3, num_nodes))
    method, step_size = SOLVERS["dopri5"], 1 / _NUM_STEPS
    problem = OdeProblem(
        vector_field, method, slice(None), 0.0, 0.0, step_size, _NUM_STEPS, _NUM_STEPS
    )

    def autodiff(inputs: jax.Array, args: Any) -> jax.Array:
        def step(carry: Any, time: jax.Array) -> tuple[Any, None]:
            state, slope = carry
            length = jnp.float32(step_size)
            return problem.stepper.step(time, length, state, slope, args)[:2], None

        start = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, num_nodes - inputs.shape[-1])))
        carry = start, vector_field(inputs, args)[0]
        return lax.scan(step, carry, jnp.arange(_NUM_STEPS) * step_size)[0][0]

    inputs = jax.nn.relu(_normal(64, 8, 8, 32))
    ours = lambda inputs, args: solve_ode(problem, inputs, args)  # noqa: E731
    return Case(ours, autodiff, (inputs, (parameters, _normal(num_nodes, num_nodes))))


def _looped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `number` steps in one program; each has gradients for all arguments."""

    def step(_: int, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        out, pull = jax.vjp(function, *arguments)
        return jax.tree.map(lambda a, gradient: a + 1e-9 * gradient, arguments, pull(out))

    # The number is an argument, because XLA would unroll a loop of a few known steps.
    return jax.jit(lambda arguments, number: lax.fori_loop(0, number, step, arguments))


if __name__ == "__main__":
    restart_with_large_pages()  # as training does
    main()
