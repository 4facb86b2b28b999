"""What benchmarks share: their flags, the machine they run on, and the file of their numbers."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.alternate import Timing, format_seconds
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.roofline import Machine, Work


def flag_parser(doc: str) -> argparse.ArgumentParser:
    """Without flags yet; `doc` is the docstring of a module."""
    about, _, usage = doc.partition("\n\n")
    return argparse.ArgumentParser(description=about, epilog=usage, formatter_class=_Help)


def timing_flags(doc: str, turns: int = 7) -> argparse.ArgumentParser:
    """With the flags of what takes times and reports them."""
    parser = flag_parser(doc)
    parser.add_argument("--turns", type=count, metavar="N", default=turns, help="timed, of each")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="to write the numbers to")
    return parser


def add_case_flags(parser: argparse.ArgumentParser, *cases: str) -> None:
    """Which models to step, by default `cases`, and how."""
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(cases),
        metavar="CASE",
        help="models, of " + ", ".join(CASES),
    )
    parser.add_argument("--batch-size", type=count, metavar="N", help="instead of each case's own")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="that ours computes in"
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after what a flag is, and lines as they are written."""


_REFERENCE_NEEDS = ("torch", "torchdiffeq", "PyYAML")


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """Where the published code is, and what runs it; see `reference_of`."""
    is_checkout = folder_with("models/graphs", "checkout of allenai/dnw")
    parser.add_argument("--reference", type=is_checkout, metavar="DIR", help="the published code")
    parser.add_argument(
        "--reference-python",
        type=program,
        metavar="PYTHON",
        help="that runs it: one with " + ", ".join(_REFERENCE_NEEDS),
    )


def reference_of(
    parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> dict[str, dict[str, str]]:
    """The `versions` of the published code's interpreter, or nothing. Ends if they do not do."""
    others = {}
    if flags.reference_python:
        try:
            others["reference"] = versions(flags.reference_python, *_REFERENCE_NEEDS)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --reference-python: {error}")
    if bool(flags.reference) != bool(others):
        parser.error("--reference and --reference-python belong together; give both or neither")
    return others


def count(text: str) -> int:
    """A number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


def new_file(text: str) -> Path:
    """A file in a folder that there is."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def program(text: str) -> str:
    """Something to execute, such as an interpreter."""
    if not shutil.which(text):
        raise argparse.ArgumentTypeError(f"{text} is no program")
    return text


def folder_with(inside: str, name: str) -> Callable[[str], Path]:
    """Of a flag: a folder that holds the path `inside`, else it is no `name`."""

    def folder(text: str) -> Path:
        path = Path(text).resolve()
        if not (path / inside).exists():
            raise argparse.ArgumentTypeError(f"{text} is no {name}: there is no {inside} in it")
        return path

    return folder


def versions(python: str, *packages: str) -> dict[str, str]:
    """Of an interpreter and of packages in it.

    Raises:
      argparse.ArgumentTypeError: `python` is no interpreter, or lacks one of them.
    """
    code = """
import json, platform, sys
from importlib import metadata
have = {d.metadata["Name"]: d.version for d in metadata.distributions()}
named = {name: have.get(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version()} | named))
"""
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, check=False)
    if done.returncode or not done.stdout.startswith(b"{"):
        raise argparse.ArgumentTypeError(f"{python} is no Python interpreter")
    found = json.loads(done.stdout)
    if missing := [name for name in packages if not found[name]]:
        raise argparse.ArgumentTypeError(
            f"{python} lacks {', '.join(missing)}: {python} -m pip install {' '.join(missing)}"
        )
    return found


def interpreter(*packages: str) -> Callable[[str], str]:
    """Of a flag: a Python that has `packages`."""

    def with_packages(text: str) -> str:
        versions(program(text), *packages)
        return text

    return with_packages


def _processor() -> str:
    """What the system calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Report:
    """Prints rows as they come, and writes them.

    Attributes:
      machine: what it can do, measured at the start.
    """

    def __init__(self, path: Path | None, **others: Mapping[str, str]) -> None:
        """Of `others` than our own interpreter the `versions`, by what they are called."""
        # This process and the workers share a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.machine = Machine.measured()
        jax.clear_caches()  # the workers need the memory
        ours = versions(sys.executable, "jax", "flax", "numpy")
        self._path, self._rows = path, list[dict[str, Any]]()
        self._about = {
            "date": str(date.today()),
            "machine": f"{os.cpu_count()} cores of {_processor()}, {platform.system()}",
            "device": jax.devices()[0].device_kind,
            "versions": {"ours": ours, **others},
            "measured": asdict(self.machine),
        }
        print(f"{self._about['date']}, {self._about['machine']}")
        print(f"{self._about['device']}: {self.machine}")
        for who, each in {"ours": ours, **others}.items():
            print(f"{who}: " + ", ".join(" ".join(pair) for pair in each.items()), flush=True)

    def add(
        self,
        name: str,
        timings: Mapping[str, Timing],
        work: Work | None = None,
        target: float | None = None,
        **more: Any,
    ) -> None:
        """What each took in its turns; with their `work`, how close "ours" is to its floor.

        The ratio of the medians of each and of "ours" follows its times. `target` is what that of
        the last shall be at least. What is said in `more` is printed, too.
        """
        ours = timings["ours"].median
        row = {"name": name, **more}
        row["seconds"] = {who: timing.seconds for who, timing in timings.items()}
        lines = {who: str(timing) for who, timing in timings.items()}
        for who, timing in timings.items():
            if who != "ours":
                lines[who] += f"  {timing.median / ours:.2f} x ours"
        last, ratio = who, timing.median / ours
        if target and last != "ours":
            row["target"] = target
            lines[last] += f", of {target} at least: {'met' if ratio >= target else 'MISSED'}"
        if work:
            floor = work.floor(self.machine)
            row |= {"work": asdict(work), "floor": floor}
            lines["floor"] = f"{format_seconds(floor)} ({work})  {floor / ours:.0%} of it reached"
        lines |= {what.replace("_", " "): str(value) for what, value in more.items()}
        self._rows.append(row)
        print(name)
        for what, said_of_it in lines.items():
            print(f"  {what:15s} {said_of_it}", flush=True)
        if self._path:
            self._path.write_text(json.dumps({**self._about, "rows": self._rows}, indent=1) + "\n")
