"""Times several methods to select the edges of the five graphs of a MobileNetV1-like chain.

    python -m experiments.benchmarks.selection --torch-python=PYTHON

PYTHON is an interpreter with torch. It sorts all magnitudes and zeroes the smallest, as the
published code does; without --torch-python it is not timed. All methods run on the same machine
in turn. Compare the ratio of the medians. The work reads each weight, and writes the weight or
zero.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.alternate import alternate
from experiments.benchmarks.cases import SHAPES
from experiments.benchmarks.flags import interpreter, timing_parser, versions
from experiments.benchmarks.report import Report
from experiments.benchmarks.roofline import Work
from experiments.benchmarks.selection_worker import METHODS


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one row."""
    parser = timing_parser(__doc__, turns=9)
    parser.add_argument(
        "--torch-python", type=interpreter("torch"), metavar="PYTHON", help="interpreter with torch"
    )
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="methods besides ours"
    )
    flags = parser.parse_args(argv)
    worker = [sys.executable, "-m", f"{__package__}.selection_worker"]
    commands = {name: [*worker, name] for name in dict.fromkeys(["ours", *flags.methods])}
    others = {}
    if flags.torch_python:
        script = Path(__file__).with_name("sort_worker.py")
        commands["sort in PyTorch"] = [flags.torch_python, str(script)]
        others["PyTorch"] = versions(flags.torch_python, "torch")
    report = Report(flags.json, **others)
    num_edges = sum(math.prod(shape) for shape in SHAPES)
    title = f"{num_edges / 1e6:.1f} million edges"
    target = 15 if flags.torch_python else None
    report.add(title, alternate(commands, flags.turns), Work(0, 8 * num_edges), target)


if __name__ == "__main__":
    main()
