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
from experiments.benchmarks.cases import CASES

_WORKERS = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each wiring and mode, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="a checkout of allenai/dnw")
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--modes", default="train,run,evaluate")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    flags = parser.parse_args(argv)
    rows = []
    for name in flags.cases.split(","):
        for mode in flags.modes.split(","):
            case = CASES[name]
            arguments = [name, mode, str(case.batch_size)]
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
            row = {"case": name, "mode": mode, "batch_size": case.batch_size}
            row |= {who: timing.seconds for who, timing in timings.items()}
            text = "  ".join(f"{who} {timing}" for who, timing in timings.items())
            if flags.reference:
                row["ratio"] = timings["reference"].median / timings["ours"].median
                text += f"  reference / ours {row['ratio']:.2f}"
            rows.append(row)
            print(f"{name:13s} {mode:8s} B={case.batch_size:<4d} {text}", flush=True)
    if flags.json:
        machine = f"{platform.machine()}, {platform.processor() or platform.system()}"
        result = {"date": str(date.today()), "machine": machine, "rows": rows}
        flags.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
