"""What `sparsify` costs on ResNet-50's 25.6 million parameters; its selection beside a peer's.

    python -m experiments.benchmarks.sparsify --jaxpruner=DIR --jaxpruner-python=PYTHON

DIR is a checkout of github.com/google-research/jaxpruner, PYTHON an interpreter with what it needs
(jax, flax, optax, chex, ml_collections). All run on the same machine in turn; the ratio of the
medians is what counts. Without --jaxpruner only our own times are shown.

A step is forward, backward and SGD of the dense ResNet-50, with or without
`sparsify(params, 0.9)` before the forward pass. A selection is of all masks at 90 %, compiled.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.alternate import Timing, alternate
from experiments.benchmarks.sparsify_worker import shapes_of_resnet50

_WORKERS = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jaxpruner", type=Path, help="a checkout of google-research/jaxpruner")
    parser.add_argument("--jaxpruner-python", default=sys.executable)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    flags = parser.parse_args(argv)

    worker = [sys.executable, "-m", f"{__package__}.sparsify_worker"]
    size = [str(flags.batch_size), str(flags.image_size)]
    steps = {
        "dense": [*worker, "step", "dense", *size],
        "sparsify": [*worker, "step", "sparsify", *size],
    }
    timings = alternate(steps, flags.turns)
    title = f"step, B={flags.batch_size}, {flags.image_size} px"
    _show(title, timings, "sparsify", "dense")

    with tempfile.TemporaryDirectory() as folder:
        shapes = Path(folder) / "shapes.json"
        selections = {"ours": [*worker, "select", str(shapes)]}
        if flags.jaxpruner:
            script = str(_WORKERS / "jaxpruner_worker.py")
            peer = str(flags.jaxpruner.resolve())
            selections["jaxpruner"] = [flags.jaxpruner_python, script, peer, str(shapes)]
        shapes.write_text(json.dumps(shapes_of_resnet50()))
        timings = alternate(selections, flags.turns)
    _show("selection", timings, "jaxpruner", "ours")


def _show(title: str, timings: dict[str, Timing], over: str, under: str) -> None:
    text = "  ".join(f"{name} {timing}" for name, timing in timings.items())
    if over in timings:
        text += f"  {over} / {under} {timings[over].median / timings[under].median:.2f}"
    print(f"{title:20s} {text}", flush=True)


if __name__ == "__main__":
    main()
