"""Where the time of a training step goes: its operations, the longest first.

    python -m experiments.benchmarks.step_profile --cases static

Traced by JAX's profiler on the device at hand; first, how long it took to compile. Each line is a
kind of operation of the compiled program: milliseconds in a step, share of all of them, how often
in a step, HLO's name for it, the shape of its result and what in our code it comes from. Loops and
branches are not listed, what they execute is. Operations may overlap, so that together they take
longer than the step.
"""

import functools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from dnw_jax.platform.large_pages import restart_with_large_pages
from dnw_jax.train import train_step
from experiments.benchmarks.alternate import format_seconds
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.hlo import CONTROL_FLOW, Operation, Program
from experiments.benchmarks.ours import our_config, our_state, random_batch
from experiments.benchmarks.report import add_case_flags, count, flag_parser

Kind = tuple[str, str, str]  # of operation: HLO's opcode, the result's type, the source


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each case."""
    parser = flag_parser(__doc__)
    add_case_flags(parser, "static")
    parser.add_argument("--turns", type=count, metavar="N", default=3, help="steps that are traced")
    parser.add_argument("--top", type=count, metavar="N", default=15, help="kinds to list")
    flags = parser.parse_args(argv)
    for name in flags.cases:
        batch_size = flags.batch_size or CASES[name].batch_size
        config = our_config(name, batch_size, flags.dtype)
        state, batch = our_state(config), random_batch(name, batch_size)
        start = time.perf_counter()
        program = train_step.lower(state, batch).compile()
        compiling = format_seconds(time.perf_counter() - start)
        operations = dict[str, Operation]()
        for computation in Program.of(program.as_text() or "").computations.values():
            operations |= computation
        step = functools.partial(program, state, batch)
        times, numbers = _traced(step, operations, flags.turns)
        total = sum(times.values())
        print(
            f"{name} B={batch_size} {flags.dtype}: compiled in {compiling}; "
            f"operations of {total:.1f} ms in a step"
        )
        for kind, milliseconds in times.most_common(flags.top):
            opcode, result, source = kind
            print(
                f"{milliseconds:8.2f} ms {milliseconds / total:6.1%} "
                f"{numbers[kind] / flags.turns:5.0f} x "
                f"{opcode:12s} {result[:34]:34s} {source[-80:]}"
            )


def _traced(
    step: Callable[[], Any], operations: dict[str, Operation], turns: int
) -> tuple[Counter[Kind], Counter[Kind]]:
    """Milliseconds in a step by kind of operation, and how often it was executed in all turns."""
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(turns):
                jax.block_until_ready(step())
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    times, numbers = Counter[Kind](), Counter[Kind]()
    for event in _events(trace):
        operation = operations.get(dict(event.stats).get("hlo_op", event.name))
        if operation and operation.kind not in CONTROL_FLOW:
            kind = operation.kind, operation.result, operation.source
            times[kind] += event.duration_ns / 1e6 / turns
            numbers[kind] += 1
    return times, numbers


def _events(trace: jax.profiler.ProfileData) -> Iterator[Any]:
    """Those of the devices, if they are not the host."""
    planes = list(trace.planes)
    devices = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
    for plane in devices or planes:
        for line in plane.lines:
            yield from line.events


if __name__ == "__main__":
    restart_with_large_pages()  # as runs do
    main()
