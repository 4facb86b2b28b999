"""Times a step of ResNet-50 with and without `sparsify`, and its selection beside jaxpruner's.

    python -m experiments.benchmarks.sparsify --jaxpruner=DIR --jaxpruner-python=PYTHON

DIR is a checkout of github.com/google-research/jaxpruner, PYTHON an interpreter with the packages
that it needs (jax, flax, optax, chex, ml_collections). All run on the same machine in turn.
Compare the ratio of the medians. Without --jaxpruner the benchmark times dnw_jax alone.

A step is forward, backward and SGD of the dense ResNet-50, whose parameters are 25.6 million,
with `sparsify(params, 0.9)` before the forward pass ("ours") or without it ("dense"). A selection
computes all masks at 90 % in one compiled program.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.alternate import Timing, alternate
from experiments.benchmarks.flags import (
    folder_with,
    interpreter,
    positive_integer,
    timing_parser,
    versions,
)
from experiments.benchmarks.report import Report
from experiments.benchmarks.roofline import Work
from experiments.benchmarks.sparsify_worker import shapes_of_resnet50

_PACKAGES = ("jax", "flax", "optax", "chex", "ml_collections")
_WORKER = [sys.executable, "-m", f"{__package__}.sparsify_worker"]
_LARGEST_SHARE = 0.25  # of a step, for the selection


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each comparison."""
    flags = _parse(argv)
    others = {}
    if flags.jaxpruner:
        others["jaxpruner"] = versions(flags.jaxpruner_python, *_PACKAGES)
    report = Report(flags.json, **others)

    size = [str(flags.batch_size), str(flags.image_size)]
    commands = {
        "ours": [*_WORKER, "step", "sparsify", *size],
        "dense": [*_WORKER, "step", "dense", *size],
    }
    steps = alternate(commands, flags.turns)
    report.add(f"step, B={flags.batch_size}, {flags.image_size} px", steps)

    shapes = shapes_of_resnet50()
    selections = _time_selections(shapes, flags)
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    work = Work(0, 5 * num_weights)  # reads each weight, writes a byte of its mask
    share = selections["ours"].median / steps["ours"].median
    verdict = "met" if share <= _LARGEST_SHARE else "MISSED"
    share_of_a_step = f"{share:.1%} (at most {_LARGEST_SHARE:.0%}: {verdict})"
    report.add("selection", selections, work, share_of_a_step=share_of_a_step)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = timing_parser(__doc__)
    is_checkout = folder_with("jaxpruner", "checkout of google-research/jaxpruner")
    parser.add_argument("--jaxpruner", type=is_checkout, metavar="DIR", help="its checkout")
    parser.add_argument(
        "--jaxpruner-python",
        type=interpreter(*_PACKAGES),
        metavar="PYTHON",
        help="interpreter for it",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, metavar="N", default=32, help="images per step"
    )
    parser.add_argument(
        "--image-size", type=positive_integer, metavar="N", default=64, help="in pixels"
    )
    flags = parser.parse_args(argv)
    if bool(flags.jaxpruner) != bool(flags.jaxpruner_python):
        parser.error("--jaxpruner and --jaxpruner-python belong together; give both or neither")
    return flags


def _time_selections(shapes: dict[str, list[int]], flags: argparse.Namespace) -> dict[str, Timing]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shapes.json"
        file.write_text(json.dumps(shapes))
        commands = {"ours": [*_WORKER, "select", str(file)]}
        if flags.jaxpruner:
            script = str(Path(__file__).with_name("jaxpruner_worker.py"))
            arguments = [script, str(flags.jaxpruner), str(file)]
            commands["jaxpruner"] = [flags.jaxpruner_python, *arguments]
        return alternate(commands, flags.turns)


if __name__ == "__main__":
    main()
