"""Choosing the edges of the five graphs of a MobileNetV1-like chain, beside a sort in PyTorch.

    python -m experiments.benchmarks.selection --torch-python=PYTHON

PYTHON is an interpreter with torch; it sorts all magnitudes and zeroes the smallest, as the
published code does. Both run on the same machine in turn; the ratio of the medians is what counts.
Without --torch-python only our own times are shown.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.alternate import alternate

_WORKERS = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="an interpreter with torch")
    parser.add_argument("--turns", type=int, default=9)
    flags = parser.parse_args(argv)
    commands = {"ours": [sys.executable, "-m", f"{__package__}.selection_worker"]}
    if flags.torch_python:
        commands["sort"] = [flags.torch_python, str(_WORKERS / "sort_worker.py")]
    timings = alternate(commands, flags.turns)
    text = "  ".join(f"{name} {timing}" for name, timing in timings.items())
    if "sort" in timings:
        text += f"  sort / ours {timings['sort'].median / timings['ours'].median:.1f}"
    print(f"five graphs, 12.0 million edges  {text}", flush=True)


if __name__ == "__main__":
    main()
