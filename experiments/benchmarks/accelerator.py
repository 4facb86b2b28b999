r"""All that a GPU or TPU shall show, one after the other; each prints its own numbers.

    python -m experiments.benchmarks.accelerator --data-dir=DIR --out=DIR \
        --reference=DIR --reference-python=PYTHON

The data folder holds CIFAR-10 and ImageNet as TFDS prepared them; the reference is as in
`train_step`, without it only our own times are shown. Into --out go what each printed, the numbers
as JSON and the two training runs.

1. Steps of all models beside the published code; the choice of edges beside its sort, and within a
   step of ResNet-50; the single-channel convolution.
2. Where the time of each model's step goes.
3. Static DNW on CIFAR-10 for 160 epochs, from the start of the process to its end: 120 s at most on
   an H200; and five seeds at once: 300 s.
4. The MobileNetV1-like chain x0.225 on synthetic ImageNet in bfloat16: 5,000 images/s at least, and
   what the input pipeline gives beside it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.cases import CASES
from experiments.benchmarks.report import (
    add_reference_flags,
    count,
    flag_parser,
    folder_with,
    reference_of,
)

_ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs them all; what fails is named, and the others still run."""
    parser = flag_parser(__doc__)
    parser.add_argument("--data-dir", type=_data, required=True, metavar="DIR", help="TFDS's")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add_reference_flags(parser)
    parser.add_argument("--epochs", type=count, default=160, metavar="N", help="of CIFAR-10")
    parser.add_argument("--batch-size", type=count, default=512, metavar="N", help="of ImageNet")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="models"
    )
    flags = parser.parse_args(argv)
    if flags.out.exists():
        parser.error(f"argument --out: {flags.out} is there already; name a new folder")
    reference_of(parser, flags)
    flags.out.mkdir(parents=True)
    failed = [name for name, command in _commands(flags).items() if not _ran(name, command, flags)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see above and in {flags.out}")


def _data(text: str) -> Path:
    for dataset in ("cifar10", "imagenet2012"):
        path = folder_with(dataset, "folder of TFDS's CIFAR-10 and ImageNet")(text)
    return path


# Seconds that 160 epochs of CIFAR-10 may take on an H200.
_LIMITS = {"cifar10": 120, "cifar10_five_seeds": 300}


def _commands(flags: argparse.Namespace) -> dict[str, list[str]]:
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


def _benchmark(module: str, flags: argparse.Namespace, name: str = "") -> list[str]:
    return ["-m", f"{__package__}.{module}", f"--json={flags.out / (name or module)}.json"]


def _ran(name: str, command: list[str], flags: argparse.Namespace) -> bool:
    """Whether it ended well; prints what it prints, and its seconds."""
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
        ended = f"{(seconds := time.perf_counter() - start):.1f} s"
        if (limit := _LIMITS.get(name)) and flags.epochs == 160:
            ended += f", of {limit} s at most: {'met' if seconds <= limit else 'MISSED'}"
        print(ended, flush=True)
        log.write(f"{ended}\n")
    return process.wait() == 0


if __name__ == "__main__":
    main()
