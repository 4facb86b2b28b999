"""Times the single-channel 3x3 convolution and its gradients beside XLA's grouped convolution.

    python -m experiments.benchmarks.depthwise

"ours" runs in a loop in one program, as in training. The grouped convolution runs once per
program, because XLA:CPU takes minutes for it in a loop. The work reads and writes each array
once: input and output; in the backward pass the cotangent, the input and the input's cotangent.
The arithmetic is nine products and sums per pixel, and as many for each gradient.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dnw_jax.ops.depthwise import depthwise_conv3x3
from dnw_jax.platform.large_pages import restart_with_large_pages
from experiments.benchmarks.alternate import Timing
from experiments.benchmarks.flags import timing_parser
from experiments.benchmarks.report import Report
from experiments.benchmarks.roofline import Work

SHAPES = ((128, 8, 800), (512, 8, 192), (128, 16, 128), (128, 32, 64), (16, 56, 128))
_ITERATIONS = 4
Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each shape and pass."""
    flags = timing_parser(__doc__).parse_args(argv)
    report = Report(flags.json)
    for batch, size, nodes in SHAPES:
        planes = jax.random.normal(jax.random.key(0), (batch, size, size, nodes))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, nodes))
        for passes, num_arrays, num_products in ((_forward, 2, 9), (_with_gradients, 5, 27)):
            programs: dict[str, Convolution] = {
                "ours": _looped(passes(depthwise_conv3x3)),
                "grouped": jax.jit(passes(_grouped)),
            }
            calls = {
                who: functools.partial(program, planes, kernel) for who, program in programs.items()
            }
            timings = in_turn(calls, flags.turns, {"ours": _ITERATIONS})
            work = Work(2 * num_products * planes.size, num_arrays * planes.nbytes)
            report.add(
                f"{batch} x {size} x {size} x {nodes} {passes.__name__.strip('_')}", timings, work
            )


def _grouped(planes: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        planes,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=planes.shape[-1],
    )


def _forward(convolution: Convolution) -> Convolution:
    return convolution


def _with_gradients(convolution: Convolution) -> Convolution:
    def gradients(planes: jax.Array, kernel: jax.Array) -> jax.Array:
        out, pullback = jax.vjp(convolution, planes, kernel)
        planes_cotangent, kernel_cotangent = pullback(out)
        return planes_cotangent + 1e-9 * jnp.sum(kernel_cotangent)

    return gradients


def _looped(convolution: Convolution) -> Convolution:
    @jax.jit  # `number` is an argument, because XLA unrolls a short loop of constant length
    def loop(planes: jax.Array, kernel: jax.Array, number: int) -> jax.Array:
        return lax.fori_loop(0, number, lambda _, planes: convolution(planes, kernel), planes)

    return lambda planes, kernel: loop(planes, kernel, _ITERATIONS)


def in_turn(
    calls: Mapping[str, Callable[[], Any]],
    turns: int,
    steps: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times `turns` turns of each call with `clock`, after one uncounted turn that compiles.

    A call that makes several `steps` has the seconds of one of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            elapsed = clock() - start
            if turn:
                seconds[name].append(elapsed / (steps or {}).get(name, 1))
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


if __name__ == "__main__":
    restart_with_large_pages()  # as training does
    main()
