"""What benchmarks share: their flags, the machine they run on, and the file of their numbers."""

import argparse
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

from experiments.benchmarks.alternate import Timing, said
from experiments.benchmarks.roofline import Machine, Work


def flag_parser(doc: str, turns: int = 7) -> argparse.ArgumentParser:
    """With the flags that every benchmark has; `doc` is the docstring of its module."""
    about, _, usage = doc.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=count, metavar="N", default=turns, help="of each")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="where to write the numbers")
    return parser


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
    """Of an interpreter and of packages that it has."""
    code = """
import json, platform, sys
from importlib import metadata
have = {d.metadata["Name"]: d.version for d in metadata.distributions()}
named = {name: have.get(name, "not installed") for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version()} | named))
"""
    done = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


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
            "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
            "device": jax.devices()[0].device_kind,
            "versions": {"ours": ours, **others},
            "measured": asdict(self.machine),
        }
        print(f"{jax.devices()[0].device_kind}: {self.machine}")
        for who, each in {"ours": ours, **others}.items():
            print(f"{who}: " + ", ".join(" ".join(pair) for pair in each.items()), flush=True)

    def add(
        self,
        name: str,
        timings: Mapping[str, Timing],
        work: Work | None = None,
        **more: Any,
    ) -> None:
        """A row: what each took in its turns; with their `work`, how close "ours" is to its floor.

        The ratio of the medians of each and of "ours" follows its times. What is said in `more` is
        printed, too.
        """
        ours = timings["ours"].median
        row = {"name": name, **more}
        row["seconds"] = {who: timing.seconds for who, timing in timings.items()}
        text = f"{name:24s}"
        for who, timing in timings.items():
            ratio = f" = {timing.median / ours:.2f} x ours" * (who != "ours")
            text += f"  {who} {timing}{ratio}"
        if work:
            floor = work.floor(self.machine)
            row |= {"work": asdict(work), "floor": floor}
            text += f"  floor {said(floor)} ({work}): {floor / ours:.0%} of it reached"
        text += "".join(f"  {what} {value}" for what, value in more.items())
        self._rows.append(row)
        print(text, flush=True)
        if self._path:
            self._path.write_text(json.dumps({**self._about, "rows": self._rows}, indent=1) + "\n")
