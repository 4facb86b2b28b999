"""Lists the operations of a training step by the time that they take.

    python -m experiments.benchmarks.step_profile --cases static

JAX's profiler traces the step on the available device. The first line gives the time of
compilation. Each further line is a kind of operation of the compiled program: milliseconds per
step, share of the total, executions per step, HLO opcode, shape of the result, and the source in
the code. The operations inside loops and branches are listed; the loops and branches themselves
are not. Operations may overlap, so their sum may exceed the time of the step.
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
from experiments.benchmarks.flags import add_case_flags, flag_parser, positive_integer
from experiments.benchmarks.hlo import CONTROL_FLOW, Operation, Program
from experiments.benchmarks.ours import our_config, our_state, random_batch

# A kind of operation: HLO opcode, type of the result, source.
Kind = tuple[str, str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each case."""
    parser = flag_parser(__doc__)
    add_case_flags(parser, "static")
    parser.add_argument(
        "--turns", type=positive_integer, metavar="N", default=3, help="steps to trace"
    )
    parser.add_argument(
        "--top", type=positive_integer, metavar="N", default=15, help="kinds to list"
    )
    flags = parser.parse_args(argv)
    for name in flags.cases:
        batch_size = flags.batch_size or CASES[name].batch_size
        config = our_config(name, batch_size, flags.dtype)
        state, batch = our_state(config), random_batch(name, batch_size)
        start = time.perf_counter()
        program = train_step.lower(state, batch).compile()
        compile_time = format_seconds(time.perf_counter() - start)
        operations = dict[str, Operation]()
        for computation in Program.of(program.as_text() or "").computations.values():
            operations |= computation
        step = functools.partial(program, state, batch)
        times, executions = _trace(step, operations, flags.turns)
        total = sum(times.values())
        print(
            f"{name} B={batch_size} {flags.dtype}: compiled in {compile_time}; "
            f"operations take {total:.1f} ms per step"
        )
        for kind, milliseconds in times.most_common(flags.top):
            opcode, result, source = kind
            print(
                f"{milliseconds:8.2f} ms {milliseconds / total:6.1%} "
                f"{executions[kind] / flags.turns:5.0f} x "
                f"{opcode:12s} {result[:34]:34s} {source[-80:]}"
            )


def _trace(
    step: Callable[[], Any], operations: dict[str, Operation], turns: int
) -> tuple[Counter[Kind], Counter[Kind]]:
    """Returns, by kind of operation, milliseconds per step and executions in all turns."""
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(turns):
                jax.block_until_ready(step())
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    times, executions = Counter[Kind](), Counter[Kind]()
    for event in _events(trace):
        operation = operations.get(dict(event.stats).get("hlo_op", event.name))
        if operation and operation.kind not in CONTROL_FLOW:
            kind = operation.kind, operation.result, operation.source
            times[kind] += event.duration_ns / 1e6 / turns
            executions[kind] += 1
    return times, executions


def _events(trace: jax.profiler.ProfileData) -> Iterator[Any]:
    """Yields the events of GPUs or TPUs if the trace has any, otherwise those of the host."""
    planes = list(trace.planes)
    devices = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
    for plane in devices or planes:
        for line in plane.lines:
            yield from line.events


if __name__ == "__main__":
    restart_with_large_pages()  # as runs do
    main()
