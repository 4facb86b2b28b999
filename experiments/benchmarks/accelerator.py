r"""Runs all measurements for a GPU or TPU, one after the other.

    python -m experiments.benchmarks.accelerator --data-dir=DIR --out=DIR \
        --reference=DIR --reference-python=PYTHON

The data folder holds CIFAR-10 and ImageNet as TFDS prepared them. `train_step` explains
--reference; without it the benchmarks time dnw_jax alone. --out receives the printed text of each
measurement, its numbers as JSON, and the workdirs of the two training runs.

1. Steps of all models, and of the published code. The selection of edges, beside a sort in
   PyTorch and within a step of ResNet-50. The single-channel convolution.
2. The operations of each model's step by time.
3. Static DNW on CIFAR-10 for 160 epochs, from the start of the process to its end: at most 120 s
   on an H200. Five seeds at once: at most 300 s.
4. The MobileNetV1-like chain x0.225 on random images in bfloat16: at least 5,000 images/s. The
   images/s of the input pipeline.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.cases import CASES
from experiments.benchmarks.flags import (
    add_reference_flags,
    flag_parser,
    folder_with,
    positive_integer,
    reference_versions,
)

_ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all measurements, also after one has failed, and names those that failed."""
    parser = flag_parser(__doc__)
    parser.add_argument(
        "--data-dir", type=_data_folder, required=True, metavar="DIR", help="TFDS folder"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
    add_reference_flags(parser)
    parser.add_argument(
        "--epochs", type=positive_integer, default=160, metavar="N", help="epochs of CIFAR-10"
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=512,
        metavar="N",
        help="batch size of ImageNet",
    )
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="models"
    )
    flags = parser.parse_args(argv)
    if flags.out.exists():
        parser.error(f"argument --out: {flags.out} exists already; name a new folder")
    reference_versions(parser, flags)
    flags.out.mkdir(parents=True)
    commands = _commands(flags)
    failed = [name for name, command in commands.items() if not _run(name, command, flags)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the errors are printed above and in {flags.out}")


def _data_folder(text: str) -> Path:
    for dataset in ("cifar10", "imagenet2012"):
        path = folder_with(dataset, "folder of TFDS's CIFAR-10 and ImageNet")(text)
    return path


# The largest number of seconds for 160 epochs of CIFAR-10 on an H200.
_LIMITS = {"cifar10": 120, "cifar10_five_seeds": 300}


def _commands(flags: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the arguments of Python for each measurement, by its name."""
    reference = [
        f"--{flag.replace('_', '-')}={value}"
        for flag in ("reference", "reference_python")
        if (value := getattr(flags, flag))
    ]
    static = [
        "-m",
        "dnw_jax.main",
        f"--config={_ROOT / 'configs/cifar10_tiny.py:wiring=static'}",
        f"--config.dataset.data_dir={flags.data_dir}",
        f"--config.num_epochs={flags.epochs}",
    ]
    synthetic = ["--cases", "mbv1_imagenet", "--modes", "run", f"--batch-size={flags.batch_size}"]
    cores = str(len(os.sched_getaffinity(0)))
    torch = [f"--torch-python={flags.reference_python}"] if flags.reference_python else []
    pipeline = [f"--data-dir={flags.data_dir}", "--workers", cores]
    return {
        "train_step": [*_benchmark("train_step", flags), *reference, "--cases", *flags.cases],
        "selection": [*_benchmark("selection", flags), *torch, "--methods", "top_k"],
        "sparsify": _benchmark("sparsify", flags),
        "depthwise": _benchmark("depthwise", flags),
        "step_profile": ["-m", f"{__package__}.step_profile", "--cases", *flags.cases],
        "cifar10": [*static, f"--workdir={flags.out / 'run_of_one_seed'}"],
        "cifar10_five_seeds": [
            *static,
            "--config.num_seeds=5",
            f"--workdir={flags.out / 'run_of_five_seeds'}",
        ],
        "imagenet": [*_benchmark("train_step", flags, "imagenet"), *synthetic, "--dtype=bfloat16"],
        "input_pipeline": [*_benchmark("input_pipeline", flags), *pipeline],
    }


def _benchmark(module: str, flags: argparse.Namespace, file: str = "") -> list[str]:
    return ["-m", f"{__package__}.{module}", f"--json={flags.out / (file or module)}.json"]


def _run(name: str, command: list[str], flags: argparse.Namespace) -> bool:
    """Runs a command, prints its output and its seconds; returns whether it succeeded."""
    print(f"\n{name}: python {' '.join(command)}", flush=True)
    start = time.perf_counter()
    with (flags.out / f"{name}.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
        seconds = time.perf_counter() - start
        summary = f"{seconds:.1f} s"
        if (limit := _LIMITS.get(name)) and flags.epochs == 160:
            summary += f" (at most {limit} s: {'met' if seconds <= limit else 'MISSED'})"
        print(summary, flush=True)
        log.write(f"{summary}\n")
    return process.wait() == 0


if __name__ == "__main__":
    main()
