"""Compiles the steps of a run for TPU slices and GPUs, and counts bytes. Needs no such device.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.device_programs --cases digits

Needs `pip install "jax[tpu]"` for a TPU and `pip install "jax[cuda13]"` for a GPU. It compiles the
program of a training step and of an evaluation step as a run compiles them: the state is whole on
every device, the batch is split. It measures no times; `step_profile` does, on a device.

A row holds, for one device and one step: the memory; the floating-point operations and bytes that
XLA's `cost_analysis` counts; the bytes that kernels read and write in the device's memory (with the
padding of the tiles of a TPU, and without); the arrays whose padding costs most; the cycles that
the compiler for TPUs estimates; and the collectives, with the bytes of their results. If the images
are in the device's memory, a program makes several steps in a loop: then the row is of the loop's
body, and `bytes_outside` are what the program moves besides, once for up to 128 steps.

Each loop counts once, here and in `cost_analysis`: the loops of the selection (which make two to
seven turns, the one for ties none), and the loop over the time of a continuous network. On a GPU
XLA may choose other kernels than here, because it cannot time them without one.

With `--rows=FILE.jsonl` it keeps every row in the file, and compiles only the rows that the file
lacks. `--table` prints the file as Markdown and compiles nothing:

    python -m experiments.benchmarks.device_programs --rows=FILE.jsonl --table --into=FILE.md
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.device_cases import CASES, MODES, config_of, is_streamed, lower
from experiments.benchmarks.device_table import print_table, summary
from experiments.benchmarks.flags import flag_parser, new_file, positive_integer
from experiments.benchmarks.hlo import Operation, Program
from experiments.benchmarks.markdown import add_into_flag, printed_into
from experiments.benchmarks.targets import TARGETS
from experiments.benchmarks.tiles import arrays_of, bytes_in_memory, num_bytes

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each program, and the kernels that move most bytes."""
    flags = _parse(argv)
    rows = read_rows(flags.rows)
    if flags.table:
        with printed_into(flags.into):
            print_table(rows)
        return
    known = {_name(row) for row in rows}
    for case in flags.cases:
        for target in flags.targets:
            for mode in flags.modes:
                row = {
                    "case": case,
                    "target": target,
                    "mode": mode,
                    "batch_per_device": flags.batch_per_device
                    or CASES[case].batch_per_device(TARGETS[target].num_devices),
                    "dtype": flags.dtype or CASES[case].dtype,
                }
                if _name(row) not in known:
                    row |= _compile(row, flags.top)
                    print(summary(row), flush=True)
                    if flags.rows:
                        with flags.rows.open("a") as file:
                            file.write(json.dumps(row) + "\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = flag_parser(__doc__ or "")
    tpus = [name for name, target in TARGETS.items() if target.platform == "tpu"]
    for name, choices, default in (
        ("--cases", list(CASES), list(CASES)),
        ("--targets", list(TARGETS), tpus),
        ("--modes", list(MODES), list(MODES)),
    ):
        parser.add_argument(
            name, nargs="+", choices=choices, default=default, metavar="NAME", help=str(choices)
        )
    parser.add_argument("--rows", type=new_file, metavar="FILE", help="JSON lines, a program each")
    parser.add_argument("--table", action="store_true", help="print --rows and compile nothing")
    add_into_flag(parser)
    parser.add_argument(
        "--batch-per-device", type=positive_integer, metavar="N", help="replaces a case's batch"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="replaces a case's dtype")
    parser.add_argument(
        "--top", type=positive_integer, metavar="N", default=0, help="list the largest kernels"
    )
    flags = parser.parse_args(argv)
    if flags.table and not flags.rows:
        parser.error("--table needs --rows")
    if flags.into and not flags.table:
        parser.error("--into needs --table")
    if not flags.table:
        for name in flags.targets:
            try:
                TARGETS[name].mesh()
            except RuntimeError as error:
                parser.error(str(error))
    return flags


def read_rows(path: Path | None) -> list[Row]:
    """Returns the rows of a file; none if it does not exist."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _name(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("case", "target", "mode", "batch_per_device", "dtype"))


def _compile(row: Row, top: int) -> Row:
    """Returns what one device of a target does in one step."""
    target = TARGETS[row["target"]]
    batch_size = row["batch_per_device"] * target.num_devices
    config = config_of(CASES[row["case"]]._replace(dtype=row["dtype"]), batch_size)
    lowered = lower(row["mode"], config, target.mesh())
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(dict(target.options))
    except jax.errors.JaxRuntimeError as error:  # for example, if the memory does not suffice
        return {"batch_size": batch_size, "error": str(error).partition("\n")[0]}
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    versions = {"jax": jax.__version__}
    if target.platform == "tpu":
        versions["libtpu"] = metadata.version("libtpu")
    program = Program.of(compiled.as_text() or "")
    if top:
        print_kernels(program, top)
    return {
        "batch_size": batch_size,
        **versions,
        "compile_seconds": round(seconds, 1),
        "compile_cpu_seconds": round(cpu_seconds, 1),
        **_memory(compiled),
        **_costs(compiled),
        **_traffic(program, in_loop=row["mode"] == "train" and not is_streamed(config)),
    }


def _memory(compiled: jax.stages.Compiled) -> Row:
    memory = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    return {f"{name}_bytes": getattr(memory, f"{name}_size_in_bytes", None) for name in names}


def _costs(compiled: jax.stages.Compiled) -> Row:
    costs = compiled.cost_analysis() or {}
    # Its "optimal_seconds" are negative for a TPU, so they are left out.
    return {"flops": costs.get("flops"), "xla_bytes": costs.get("bytes accessed")}


def _traffic(program: Program, in_loop: bool) -> Row:
    """Returns what a step moves; `in_loop` if the program is a loop over several steps."""
    step = program.largest_loop() if in_loop else None
    padded = list(program.executed(step, bytes_in_memory))
    real = list(program.executed(step, _elements_in_memory))
    everything = sum(moved for _, moved in program.executed(size=bytes_in_memory))
    memory_bytes = sum(moved for _, moved in padded)
    collectives: dict[str, list[int]] = {}
    for operation in program.collectives():
        count, moved = collectives.get(operation.kind, [0, 0])
        collectives[operation.kind] = [count + 1, moved + num_bytes(operation.result)]
    return {
        "kernels": len(padded),
        "memory_bytes": memory_bytes,
        "bytes_outside": everything - memory_bytes,
        "unpadded_bytes": sum(moved for _, moved in real),
        "padded_arrays": _most_padded(operation for operation, _ in padded),
        "cycles": sum(operation.cycles for operation, _ in padded),
        "collectives": collectives,
    }


def _elements_in_memory(result: str) -> int:
    """Returns the bytes in the device's memory without padding."""
    return sum(num_bytes(array) for array in arrays_of(result) if bytes_in_memory(array))


def _most_padded(operations: Any, number: int = 3) -> list[list[Any]]:
    """Returns the results that waste most bytes: type, padded and real bytes, how often."""
    wasted: Counter[str] = Counter()
    for operation in operations:
        for array in arrays_of(operation.layout):
            wasted[array] += max(bytes_in_memory(array) - num_bytes(array), 0)
    return [
        [array.partition(":")[0] + "}", bytes_in_memory(array), num_bytes(array)]
        for array, bytes_wasted in wasted.most_common(number)
        if bytes_wasted
    ]


def print_kernels(program: Program, top: int) -> None:
    """Prints the kernels that move most bytes in the device's memory."""

    def moved_bytes(pair: tuple[Operation, int]) -> int:
        return -pair[1]

    kernels = sorted(program.executed(size=bytes_in_memory), key=moved_bytes)
    for kernel, moved in kernels[:top]:
        size, result = f"{moved / 1e6:8.1f} MB", "".join(kernel.result.split())[:48]
        cycles = f"{kernel.cycles:9d} cycles" if kernel.cycles else ""
        print(f"  {size} {cycles} {kernel.kind:11s} {result:48s} {kernel.source[-70:]}")


if __name__ == "__main__":
    main()
