"""Single-channel 3x3 convolution, forwards and with gradients, beside XLA's grouped convolution.

    python -m experiments.benchmarks.depthwise

Ours in a loop in one program, as in training, the grouped one by itself: in a loop XLA:CPU takes
minutes for it. The floor is reading and writing each array once: input and output, and backwards
the cotangent, the input again and the input's cotangent.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
from jax import lax

from dnw_jax.graphs.depthwise import depthwise_conv3x3
from experiments.benchmarks.roofline import Machine

SHAPES = ((128, 8, 800), (512, 8, 192), (128, 16, 128), (128, 32, 64), (16, 56, 128))
_ITERATIONS = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    flags = parser.parse_args(argv)
    machine, rows = Machine.measured(), []
    print(machine)
    for batch, size, nodes in SHAPES:
        planes = jax.random.normal(jax.random.key(0), (batch, size, size, nodes))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, nodes))
        row: dict[str, object] = {"batch": batch, "size": size, "nodes": nodes}
        text = f"B={batch:<4d}{size:3d} px {nodes:4d} nodes"
        for passes, traffic in (("forward", 2), ("gradients", 5)):
            program = _forward if passes == "forward" else _with_gradients
            ours = _seconds(program(depthwise_conv3x3), planes, kernel, flags.turns)
            grouped = _seconds_alone(program(_grouped), planes, kernel)
            floor = traffic * planes.nbytes / machine.bytes_per_second
            row[passes] = {"ours": ours, "grouped": grouped, "floor": floor}
            text += (
                f"  {passes} {median(ours) * 1e3:6.2f} ms (grouped {median(grouped) * 1e3:.0f} ms"
            )
            text += f", floor {floor * 1e3:.2f} ms)"
        rows.append(row)
        print(text, flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")


def _grouped(planes: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        planes,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=planes.shape[-1],
    )


def _forward(convolution: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def one(_: jax.Array, planes: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolution(planes, kernel)

    return one


def _with_gradients(convolution: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def one(_: jax.Array, planes: jax.Array, kernel: jax.Array) -> jax.Array:
        out, pull = jax.vjp(convolution, planes, kernel)
        to_planes, to_kernel = pull(out)
        return to_planes + 1e-9 * jnp.sum(to_kernel)

    return one


def _seconds(
    one: Callable[..., jax.Array], planes: jax.Array, kernel: jax.Array, turns: int
) -> list[float]:
    @jax.jit
    def loop(planes: jax.Array, kernel: jax.Array, count: int) -> jax.Array:
        return lax.fori_loop(0, count, lambda i, x: one(i, x, kernel), planes)

    jax.block_until_ready(loop(planes, kernel, _ITERATIONS))
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(loop(planes, kernel, _ITERATIONS))
        seconds.append((time.perf_counter() - start) / _ITERATIONS)
    return seconds


def _seconds_alone(
    one: Callable[..., jax.Array], planes: jax.Array, kernel: jax.Array
) -> list[float]:
    program = jax.jit(lambda planes, kernel: one(jnp.zeros(()), planes, kernel))
    jax.block_until_ready(program(planes, kernel))
    start = time.perf_counter()
    jax.block_until_ready(program(planes, kernel))
    return [time.perf_counter() - start]


if __name__ == "__main__":
    main()
