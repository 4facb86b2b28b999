"""Prints how training scales: a model of a step's time, from compiled programs and link speeds.

    python -m experiments.benchmarks.scaling --rows=FILE.jsonl --into=docs/scaling.md

FILE.jsonl holds the rows of `device_programs`. Nothing here was measured on a TPU or a GPU.

The time of a step is the device's time plus the all-reduces' time; nothing overlaps, which is the
worst case. The device's time lies between "least" (the larger of arithmetic at the peak and bytes
at the memory's peak) and the compiler's estimate (the sum of its cycles; only for TPUs). The model
uses the longer of the two. "efficiency" is the device's share of the step.

Input: `--decodes` photographs a second and core (`decode` measures it), times the share of this
speed that the whole pipeline reaches (`input_pipeline` measures it).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.device_cases import NUM_TRAIN
from experiments.benchmarks.device_programs import read_rows
from experiments.benchmarks.device_table import least_seconds
from experiments.benchmarks.flags import flag_parser, positive_integer
from experiments.benchmarks.links import SLICES, Slice
from experiments.benchmarks.markdown import add_into_flag, printed_into
from experiments.benchmarks.targets import TARGETS

Row = Mapping[str, Any]

_HEADER = (
    "devices",
    "batch a device",
    "batch",
    "least ms",
    "compiler's ms",
    "all-reduce ms",
    "of it latency",
    "efficiency",
    "images/s",
    "s an epoch",
    "images/s a host",
    "cores a host to decode",
    "of",
)


# The bytes of a step on an H200, where the file has no row of one: 107 GB for 512 images
# (experiments/results/gpu_programs_2026-11-27.md).
_ON_H200 = {
    "imagenet_mbv1": {
        "target": "h200-1",
        "batch_per_device": 512,
        "memory_bytes": 107e9,
        "flops": None,
        "cycles": 0,
        "collectives": {},
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table in Markdown for each case of ImageNet."""
    parser = flag_parser(__doc__ or "")
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument(
        "--decodes",
        type=positive_integer,
        metavar="N",
        default=1179,
        help="photographs a second and core (decode_2026-11-23.md, files of 84 kB)",
    )
    parser.add_argument(
        "--pipeline",
        type=float,
        metavar="SHARE",
        default=0.47,
        help="of this speed in the pipeline (input_pipeline_2026-11-24.md, two workers)",
    )
    add_into_flag(parser)
    flags = parser.parse_args(argv)
    with printed_into(flags.into):
        _print_tables(flags)


def _print_tables(flags: argparse.Namespace) -> None:
    rows = [row for row in read_rows(flags.rows) if row["mode"] == "train" and "error" not in row]
    for case in dict.fromkeys(row["case"] for row in rows if row["case"].startswith("imagenet")):
        members = [row for row in rows if row["case"] == case]
        if case in _ON_H200 and all(row["target"] != "h200-1" for row in members):
            members.append(_ON_H200[case])
        print(f"\n**{case}**\n\n| " + " | ".join(_HEADER) + " |")
        print("|" + "---|" * len(_HEADER))
        for devices in SLICES:
            for row in _programs(members, devices):
                print("| " + " | ".join(_cells(row, members, devices, flags)) + " |")


def _programs(rows: Sequence[Row], devices: Slice) -> Iterator[Row]:
    """Yields the program of a device in a slice, for each batch a device that was compiled.

    The program of a device depends on its batch alone, up to the all-reduces, so the row of
    another slice serves where there is none of this one.
    """
    of_kind = [row for row in rows if row["target"].startswith(devices.kind)]
    for batch in sorted({row["batch_per_device"] for row in of_kind}, reverse=True):
        candidates = [row for row in of_kind if row["batch_per_device"] == batch]
        yield min(candidates, key=lambda row: abs(_devices(row) - devices.num_devices))


def _devices(row: Row) -> int:
    return TARGETS[row["target"]].num_devices


def device_seconds(row: Row) -> tuple[float, float]:
    """Returns the least time of a device's step, and the compiler's estimate (0 without one)."""
    clock = TARGETS[row["target"]].clock
    return least_seconds(row), row["cycles"] / clock if clock else 0.0


def all_reduces(rows: Sequence[Row]) -> tuple[int, int]:
    """Returns how many all-reduces a step makes, and their bytes.

    They do not depend on the number of devices or on the batch, if there are two devices at least.
    A GPU's row is of a single one; a TPU's row then says what is reduced.
    """
    shared = [row for row in rows if row["collectives"]]
    if not shared:
        raise SystemExit(f"no row of {rows[0]['case']} is for several devices")
    return max(shared, key=_devices)["collectives"]["all-reduce"]


def _cells(row: Row, rows: Sequence[Row], devices: Slice, flags: argparse.Namespace) -> list[str]:
    least, estimated = device_seconds(row)
    seconds = max(least, estimated)
    count, num_bytes = all_reduces(rows)
    reducing = devices.all_reduce_seconds(num_bytes, count)
    latency = devices.all_reduce_seconds(0, count)
    batch = row["batch_per_device"] * devices.num_devices
    images = batch / (seconds + reducing)
    hosts = devices.num_devices / devices.devices_per_host
    return [
        f"{devices.num_devices} x {devices.kind}",
        str(row["batch_per_device"]),
        f"{batch:,}",
        f"{least * 1e3:.1f}",
        f"{estimated * 1e3:.1f}" if estimated else "-",
        f"{reducing * 1e3:.2f}",
        f"{latency * 1e3:.2f}",
        f"{seconds / (seconds + reducing):.0%}",
        f"{images:,.0f}",
        f"{NUM_TRAIN['imagenet2012'] / images:,.1f}",
        f"{images / hosts:,.0f}",
        f"{images / hosts / (flags.decodes * flags.pipeline):.1f}",
        str(devices.cores_per_host),
    ]


if __name__ == "__main__":
    main()
