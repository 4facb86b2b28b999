"""What `sparsify` costs on ResNet-50's 25.6 million parameters; its selection beside a peer's.

    python -m experiments.benchmarks.sparsify --jaxpruner=DIR --jaxpruner-python=PYTHON

DIR is a checkout of github.com/google-research/jaxpruner, PYTHON an interpreter with what it needs
(jax, flax, optax, chex, ml_collections). All run on the same machine in turn; the ratio of the
medians is what counts. Without --jaxpruner only our own times are shown.

A step is forward, backward and SGD of the dense ResNet-50, with `sparsify(params, 0.9)` before the
forward pass ("ours") or without ("dense"). A selection is of all masks at 90 %, compiled.
"""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.alternate import alternate
from experiments.benchmarks.report import (
    Report,
    count,
    folder_with,
    interpreter,
    timing_flags,
    versions,
)
from experiments.benchmarks.roofline import Work
from experiments.benchmarks.sparsify_worker import shapes_of_resnet50

_WORKERS = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each comparison."""
    parser = timing_flags(__doc__)
    is_checkout = folder_with("jaxpruner", "checkout of google-research/jaxpruner")
    packages = ("jax", "flax", "optax", "chex", "ml_collections")
    parser.add_argument("--jaxpruner", type=is_checkout, metavar="DIR", help="a peer")
    parser.add_argument(
        "--jaxpruner-python",
        type=interpreter(*packages),
        metavar="PYTHON",
        help="that runs it",
    )
    parser.add_argument("--batch-size", type=count, metavar="N", default=32, help="of a step")
    parser.add_argument("--image-size", type=count, metavar="N", default=64, help="in pixels")
    flags = parser.parse_args(argv)
    if bool(flags.jaxpruner) != bool(flags.jaxpruner_python):
        parser.error("--jaxpruner and --jaxpruner-python belong together; give both or neither")
    others = {}
    if flags.jaxpruner:
        others["jaxpruner"] = versions(flags.jaxpruner_python, *packages)
    report = Report(flags.json, **others)

    worker = [sys.executable, "-m", f"{__package__}.sparsify_worker"]
    size = [str(flags.batch_size), str(flags.image_size)]
    steps = {
        "ours": [*worker, "step", "sparsify", *size],
        "dense": [*worker, "step", "dense", *size],
    }
    title = f"step, B={flags.batch_size}, {flags.image_size} px"
    timed_steps = alternate(steps, flags.turns)
    report.add(title, timed_steps)

    with tempfile.TemporaryDirectory() as folder:
        shapes = Path(folder) / "shapes.json"
        selections = {"ours": [*worker, "select", str(shapes)]}
        if flags.jaxpruner:
            script = str(_WORKERS / "jaxpruner_worker.py")
            peer = str(flags.jaxpruner)
            selections["jaxpruner"] = [flags.jaxpruner_python, script, peer, str(shapes)]
        every = shapes_of_resnet50()
        shapes.write_text(json.dumps(every))
        timings = alternate(selections, flags.turns)
    # Each weight read, a byte of its mask written.
    num_weights = sum(math.prod(shape) for shape in every.values())
    share = timings["ours"].median / timed_steps["ours"].median
    part = f"{share:.1%}, of 25% at most: {'met' if share <= 0.25 else 'MISSED'}"
    report.add("selection", timings, Work(0, 5 * num_weights), part_of_a_step=part)


if __name__ == "__main__":
    main()
