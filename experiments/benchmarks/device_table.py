"""Prints rows of `device_programs`: a line each, or a table in Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.benchmarks.targets import TARGETS

_HEADER = (
    "devices",
    "batch a device",
    "compile, CPU s",
    "memory, GB",
    "TFLOP",
    "GB by XLA",
    "GB moved",
    "padded",
    "least ms",
    "compiler's ms",
    "collectives",
)


def summary(row: Mapping[str, Any]) -> str:
    """Returns one line for one program."""
    values = zip(_HEADER[2:], _cells(row)[2:], strict=False)
    title = f"{row['case']} {row['mode']} {row['target']} {row['dtype']}"
    title += f" B={row['batch_per_device']}"
    return f"{title}: " + ", ".join(f"{name} {value}" for name, value in values)


def print_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints a table for each case and mode."""
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        tables.setdefault((row["case"], row["mode"], row["dtype"]), []).append(row)
    order = list(TARGETS)
    for (case, mode, dtype), members in tables.items():
        print(f"\n**{case}, {mode}, {dtype}**\n")
        print("| " + " | ".join(_HEADER) + " |")
        print("|" + "---|" * len(_HEADER))
        for row in sorted(members, key=lambda row: order.index(row["target"])):
            print("| " + " | ".join(_cells(row)) + " |")
        if "error" not in members[0] and (padded := padded_arrays(members[0])):
            print(f"\nMost padding on {members[0]['target']}: {padded}.")


def least_seconds(row: Mapping[str, Any]) -> float:
    """Returns the larger of the times for the arithmetic and for the memory of one device."""
    target = TARGETS[row["target"]]
    return max((row["flops"] or 0) / target.flops, row["memory_bytes"] / target.bytes_per_second)


def memory(row: Mapping[str, Any]) -> int:
    """Returns the bytes that a device needs: arguments, new results, temporaries, program."""
    results = row["output_bytes"] - row["alias_bytes"]
    return row["argument_bytes"] + results + row["temp_bytes"] + row["generated_code_bytes"]


def padded_arrays(row: Mapping[str, Any]) -> str:
    """Returns the arrays whose padding moves most bytes, each with its size over that without."""
    return ", ".join(f"{name} {padded / real:.2f}x" for name, padded, real in row["padded_arrays"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["target"], str(row["batch_per_device"]), f"does not compile: {row['error']}"]
    clock = TARGETS[row["target"]].clock
    collectives = (
        f"{count} {kind} {moved / 1e6:.3g} MB"
        for kind, (count, moved) in row["collectives"].items()
    )
    outside = row.get("bytes_outside", 0)
    return [
        row["target"],
        str(row["batch_per_device"]),
        f"{row['compile_cpu_seconds']:.0f}",
        f"{memory(row) / 1e9:.3g}",
        f"{row['flops'] / 1e12:.3g}" if row["flops"] else "-",  # XLA does not count for GPUs
        f"{row['xla_bytes'] / 1e9:.3g}" if row["xla_bytes"] else "-",
        f"{row['memory_bytes'] / 1e9:.3g}" + f" + {outside / 1e9:.3g}" * (outside > 0),
        f"{row['memory_bytes'] / max(row['unpadded_bytes'], 1):.2f}x",
        f"{least_seconds(row) * 1e3:.3g}",
        f"{row['cycles'] / clock * 1e3:.3g}" if clock and row["cycles"] else "-",
        ", ".join(collectives) or "none",
    ]
