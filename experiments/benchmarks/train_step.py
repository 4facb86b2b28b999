"""Training and evaluation steps of all models of the paper beside the published PyTorch code.

    python -m experiments.benchmarks.train_step --reference=DIR --reference-python=PYTHON

DIR is a checkout of github.com/allenai/dnw, PYTHON an interpreter with torch, torchdiffeq and
pyyaml. Both run on the same machine in turn, on its GPU if it has one; the ratio of the medians is
what counts. Without --reference only our own times are shown. `train` and `evaluate` are single
steps; `run` is a training step as a run makes it, several in one program.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.alternate import Timing, alternate
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.ours import our_state, random_batch
from experiments.benchmarks.roofline import Machine, Work

MODES = ("train", "run", "evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each case and mode, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=_folder, help="a checkout of allenai/dnw")
    parser.add_argument("--reference-python", default=sys.executable, type=_program)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--turns", type=int, choices=range(1, 100), metavar="N", default=7)
    parser.add_argument("--json", type=_new_file, help="where to write the numbers")
    flags = parser.parse_args(argv)
    # This process and the workers share a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    machine, rows = Machine.measured(), []
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}: {machine}", flush=True)
    for name in flags.cases:
        case = CASES[name]
        work = Work.of_step(our_state(name, case.batch_size), random_batch(name, case.batch_size))
        jax.clear_caches()  # the workers need the memory
        for mode in flags.modes:
            timings = _timed(name, mode, flags)
            row: dict[str, Any] = {"case": name, "mode": mode, "batch_size": case.batch_size}
            row |= {who: timing.seconds for who, timing in timings.items()}
            if mode != "evaluate" and name != "continuous":
                row |= {"work": asdict(work), "floor": work.floor(machine)}
            rows.append(row)
            print(_line(row, timings), flush=True)
            if flags.json:
                _write(flags.json, machine, rows)


def _folder(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "models" / "graphs").is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no checkout of allenai/dnw")
    return path


def _program(text: str) -> str:
    if not shutil.which(text):
        raise argparse.ArgumentTypeError(f"{text} is no program")
    return text


def _new_file(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _write(path: Path, machine: Machine, rows: list[dict[str, Any]]) -> None:
    result = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("jax", "flax")},
        "measured": asdict(machine),
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def _timed(name: str, mode: str, flags: argparse.Namespace) -> dict[str, Timing]:
    size = str(CASES[name].batch_size)
    ours = [sys.executable, "-m", f"{__package__}.our_step", name, mode, size]
    if not flags.reference:
        return alternate({"ours": ours}, flags.turns)
    script, checkout = Path(__file__).with_name("reference_step.py"), flags.reference
    theirs = [flags.reference_python, str(script), str(checkout), name]
    with tempfile.TemporaryDirectory() as folder:
        # The same weights and images for both: an adaptive solver takes as many steps as they need.
        start = str(Path(folder, "start.npz"))
        subprocess.run([*theirs, start, size], check=True)
        commands = {"ours": [*ours, start], "reference": [*theirs, mode, size]}
        return alternate(commands, flags.turns)


def _line(row: dict[str, Any], timings: dict[str, Timing]) -> str:
    text = f"{row['case']:13s} {row['mode']:8s} B={row['batch_size']:<3d}  "
    text += "  ".join(f"{who} {timing}" for who, timing in timings.items())
    if "reference" in timings:
        text += f"  reference / ours {timings['reference'].median / timings['ours'].median:.2f}"
        target = CASES[row["case"]].target
        text += f" (target {target})" * (row["mode"] != "evaluate")
    if "floor" in row:
        work, reached = Work(**row["work"]), row["floor"] / timings["ours"].median
        text += f"  floor {row['floor']:.3f} s ({work}): {reached:.0%} of it reached"
    return text


if __name__ == "__main__":
    main()
