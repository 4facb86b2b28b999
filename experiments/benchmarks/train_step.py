"""Training and evaluation steps of the tiny classifiers beside the published PyTorch code.

    python -m experiments.benchmarks.train_step --reference=DIR --reference-python=PYTHON

DIR is a checkout of github.com/allenai/dnw, PYTHON an interpreter with torch, torchdiffeq and
pyyaml. Both run on the same machine in turn; the ratio of the medians is what counts. Without
--reference only our own times are shown.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from experiments.benchmarks.alternate import alternate

CASES = {"static": 512, "discrete": 128, "continuous": 128}
_WORKERS = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each wiring and mode, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="a checkout of allenai/dnw")
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--wirings", default="static,discrete", help="of: " + ", ".join(CASES))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    flags = parser.parse_args(argv)
    rows = []
    for wiring in flags.wirings.split(","):
        for mode in ("train", "evaluate"):
            batch_size = CASES[wiring]
            arguments = [wiring, mode, str(batch_size)]
            commands = {"ours": [sys.executable, "-m", f"{__package__}.our_step", *arguments]}
            if flags.reference:
                script = str(_WORKERS / "reference_step.py")
                commands["reference"] = [
                    flags.reference_python,
                    script,
                    str(flags.reference.resolve()),
                    *arguments,
                ]
            timings = alternate(commands, flags.turns)
            row = {"wiring": wiring, "mode": mode, "batch_size": batch_size}
            row |= {name: timing.seconds for name, timing in timings.items()}
            text = "  ".join(f"{name} {timing}" for name, timing in timings.items())
            if flags.reference:
                row["ratio"] = timings["reference"].median / timings["ours"].median
                text += f"  reference / ours {row['ratio']:.2f}"
            rows.append(row)
            print(f"{wiring:10s} {mode:8s} B={batch_size:<4d} {text}", flush=True)
    if flags.json:
        machine = f"{platform.machine()}, {platform.processor() or platform.system()}"
        result = {"date": str(date.today()), "machine": machine, "rows": rows}
        flags.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
