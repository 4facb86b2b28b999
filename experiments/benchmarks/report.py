"""The report of a benchmark: the machine, and a row for each comparison; printed, and as JSON."""

import contextlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.alternate import Timing, format_seconds
from experiments.benchmarks.flags import versions
from experiments.benchmarks.roofline import Machine, Work


def _processor() -> str:
    """Returns the name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Report:
    """Prints a row for each comparison, and writes all rows to a JSON file.

    Attributes:
      machine: the speed of this machine, measured at the start.
    """

    def __init__(self, path: Path | None, **others: Mapping[str, str]) -> None:
        """Measures the machine and prints it.

        Args:
          path: the JSON file, or None.
          others: what `versions` returns for further interpreters, by a name for each.
        """
        # This process and the workers share a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.machine = Machine.measured()
        jax.clear_caches()  # the workers need the memory
        versions_of = {"ours": versions(sys.executable, "jax", "flax", "numpy"), **others}
        self._path, self._rows = path, list[dict[str, Any]]()
        self._header = {
            "date": str(date.today()),
            "machine": f"{os.cpu_count()} cores of {_processor()}, {platform.system()}",
            "device": jax.devices()[0].device_kind,
            "versions": versions_of,
            "measured": asdict(self.machine),
        }
        print(f"{self._header['date']}, {self._header['machine']}")
        print(f"{self._header['device']}: {self.machine}")
        for name, packages in versions_of.items():
            print(f"{name}: " + ", ".join(map(" ".join, packages.items())), flush=True)

    def add(
        self,
        title: str,
        timings: Mapping[str, Timing],
        work: Work | None = None,
        target: float | None = None,
        **more: Any,
    ) -> None:
        """Prints one comparison and adds it to the file.

        Args:
          title: names the comparison.
          timings: times by name. "ours" is dnw_jax; the report prints how many times as long the
            others take.
          work: the work of "ours"; the report compares its time with the floor for this work.
          target: the least ratio of the last timing to "ours".
          more: further values to print, by name.
        """
        ours = timings["ours"].median
        row = {"name": title, **more}
        row["seconds"] = {name: timing.seconds for name, timing in timings.items()}
        lines = {name: str(timing) for name, timing in timings.items()}
        ratios = {name: timing.median / ours for name, timing in timings.items() if name != "ours"}
        for name, ratio in ratios.items():
            lines[name] += f"  {ratio:.2f} x ours"
        if target and ratios:
            row["target"] = target
            last, ratio = list(ratios.items())[-1]
            lines[last] += f" (at least {target}: {'met' if ratio >= target else 'MISSED'})"
        if work:
            floor = work.floor(self.machine)
            row |= {"work": asdict(work), "floor": floor}
            speed = f"ours runs at {floor / ours:.0%} of this speed"
            lines["floor"] = f"{format_seconds(floor)} ({work})  {speed}"
        lines |= {name.replace("_", " "): str(value) for name, value in more.items()}
        self._rows.append(row)
        print(title)
        for name, line in lines.items():
            print(f"  {name:15s} {line}", flush=True)
        if self._path:
            content = {**self._header, "rows": self._rows}
            self._path.write_text(json.dumps(content, indent=1) + "\n")
