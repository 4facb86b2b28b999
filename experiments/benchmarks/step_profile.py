"""Where the time of a training step goes: its operations, the longest first.

    python -m experiments.benchmarks.step_profile --cases static

Traced by JAX's profiler on the device at hand. Each line is a kind of operation of the compiled
program: milliseconds in a step, share of all of them, how often in a step, HLO's name for it, the
shape of its result and what in our code it comes from. Loops and branches are not listed, what they
execute is. Operations may overlap, so that together they take longer than the step.
"""

import functools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dnw_jax.train import train_step
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.ours import our_config, our_state, random_batch
from experiments.benchmarks.report import count, flag_parser

_CONTROL_FLOW = ("while", "conditional", "call")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$", re.MULTILINE)


class Operation(NamedTuple):
    """Of a compiled program: HLO's opcode, the result's type, the path in the traced code."""

    kind: str
    result: str
    source: str


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each case."""
    parser = flag_parser(__doc__, turns=3)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=["static"], help="models to step"
    )
    parser.add_argument("--batch-size", type=count, metavar="N", help="instead of each case's own")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in"
    )
    parser.add_argument("--top", type=count, metavar="N", default=15, help="kinds to list")
    flags = parser.parse_args(argv)
    for name in flags.cases:
        batch_size = flags.batch_size or CASES[name].batch_size
        config = our_config(name, batch_size, flags.dtype)
        state, batch = our_state(config), random_batch(name, batch_size)
        program = train_step.lower(state, batch).compile()
        operations = _operations(program.as_text() or "")
        step = functools.partial(program, state, batch)
        times, numbers = _traced(step, operations, flags.turns)
        total = sum(times.values())
        print(f"{name} B={batch_size} {flags.dtype}: operations of {total:.1f} ms in a step")
        for operation, milliseconds in times.most_common(flags.top):
            kind, result, source = operation
            print(
                f"{milliseconds:8.2f} ms {milliseconds / total:6.1%} "
                f"{numbers[operation] / flags.turns:5.0f} x "
                f"{kind:12s} {result[:34]:34s} {source[-80:]}"
            )


def _operations(hlo: str) -> dict[str, Operation]:
    """By name, those of a program's text."""
    found = {}
    for name, result, kind, rest in _INSTRUCTION.findall(hlo):
        source = re.search(r'op_name="([^"]*)"', rest)
        shape = re.sub(r"\{[^}]*\}", "", result)  # without the layout
        found[name] = Operation(kind, shape, source[1] if source else "")
    return found


def _traced(
    step: Callable[[], Any], operations: dict[str, Operation], turns: int
) -> tuple[Counter[Operation], Counter[Operation]]:
    """Milliseconds in a step by kind of operation, and how often it was executed in all turns."""
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(turns):
                jax.block_until_ready(step())
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    times, numbers = Counter[Operation](), Counter[Operation]()
    for event in _events(trace):
        operation = operations.get(dict(event.stats).get("hlo_op", event.name))
        if operation and operation.kind not in _CONTROL_FLOW:
            times[operation] += event.duration_ns / 1e6 / turns
            numbers[operation] += 1
    return times, numbers


def _events(trace: jax.profiler.ProfileData) -> Iterator[Any]:
    """Those of the devices, if they are not the host."""
    planes = list(trace.planes)
    devices = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
    for plane in devices or planes:
        for line in plane.lines:
            yield from line.events


if __name__ == "__main__":
    main()
