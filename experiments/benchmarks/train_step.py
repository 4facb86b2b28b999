"""Times training and evaluation steps of all models, and of the published PyTorch code.

    python -m experiments.benchmarks.train_step --reference=DIR --reference-python=PYTHON

DIR is a checkout of github.com/allenai/dnw, PYTHON an interpreter with torch, torchdiffeq and
pyyaml. Both codes run on the same machine in turn, on its GPU if it has one. Compare the ratio of
the medians. Without --reference the benchmark times dnw_jax alone.

Modes: `train` and `evaluate` time single steps. `run` times a training step as a run makes it:
one program makes several steps, except on photographs, which arrive batch by batch. Continuous
time has no `run` mode, because its steps take seconds and a run makes them one by one. dnw_jax
uses large memory pages where a run uses them (`dnw_jax/platform/large_pages.py`).
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.benchmarks.alternate import Timing, alternate
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.flags import (
    add_case_flags,
    add_reference_flags,
    reference_versions,
    timing_parser,
)
from experiments.benchmarks.ours import our_config, our_state, random_batch
from experiments.benchmarks.report import Report
from experiments.benchmarks.roofline import Work

MODES = ("train", "run", "evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each case and mode."""
    parser = timing_parser(__doc__)
    add_reference_flags(parser)
    add_case_flags(parser, *CASES)
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="which steps to time"
    )
    flags = parser.parse_args(argv)
    report = Report(flags.json, **reference_versions(parser, flags))
    for name in flags.cases:
        batch_size = flags.batch_size or CASES[name].batch_size
        config = our_config(name, batch_size, flags.dtype)
        work = _work(name, config)
        for mode in flags.modes:
            if CASES[name].products and mode == "run":
                continue  # it has other images, on which the solver takes other steps
            timings = _timed(name, mode, config, flags)
            report.add(
                f"{name} {mode} B={batch_size} {flags.dtype}",
                timings,
                work[mode],
                target=None if mode == "evaluate" else CASES[name].target,
                images_per_second=round(batch_size / timings["ours"].median),
            )


def _work(name: str, config: ConfigDict) -> dict[str, Work]:
    """Returns the work of a step, by mode."""
    case = CASES[name]
    if case.products:
        num_nodes = config.model.num_nodes
        states = config.batch_size * (case.image_size // 4) ** 2 * num_nodes
        train, evaluate = (
            Work(times * 2 * states * num_nodes, times * 4 * states) for times in case.products
        )
    else:
        state, batch = our_state(config), random_batch(name, config.batch_size)
        train, evaluate = Work.of_step(state, batch), Work.of_evaluation(state, batch)
        jax.clear_caches()  # the workers need the memory
    return {"train": train, "run": train, "evaluate": evaluate}


def _timed(
    name: str, mode: str, config: ConfigDict, flags: argparse.Namespace
) -> dict[str, Timing]:
    size = str(config.batch_size)
    ours = [sys.executable, "-m", f"{__package__}.our_step", name, mode, size, config.dtype]
    if not flags.reference:
        return alternate({"ours": ours}, flags.turns)
    script = Path(__file__).with_name("reference_step.py")
    reference = [flags.reference_python, str(script), str(flags.reference), name]
    with tempfile.TemporaryDirectory() as folder:
        # Both start from the same weights and images, which decide the steps of an adaptive solver.
        start = str(Path(folder, "start.npz"))
        subprocess.run([*reference, start, size], check=True)
        commands = {"ours": [*ours, start], "reference": [*reference, mode, size]}
        return alternate(commands, flags.turns)


if __name__ == "__main__":
    main()
