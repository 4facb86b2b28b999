"""Times training batches of ImageNet as worker processes make them, without training.

    python -m experiments.benchmarks.input_pipeline --data-dir=DIR

DIR holds ImageNet as TFDS prepared it. For each number of workers it times a batch of the
pipeline: cropped, flipped and on the device. "one core" is the time of this process alone to
decode and crop as many photographs. The floor is this time divided by the number of cores that
the workers use. In a run, `input_wait` in metrics.jsonl gives the fraction of the time spent
waiting for photographs.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

import dnw_jax
from dnw_jax import data
from dnw_jax.data.photographs import training_image
from dnw_jax.platform import devices
from experiments.benchmarks.alternate import Timing, format_seconds
from experiments.benchmarks.flags import (
    add_imagenet_flag,
    positive_integer,
    timing_parser,
    versions,
)
from experiments.benchmarks.report import Report

_BATCHES_IN_TURN = 4
_CONFIGS = Path(__file__).parents[2] / "configs"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each number of workers."""
    parser = timing_parser(__doc__)
    add_imagenet_flag(parser)
    parser.add_argument(
        "--workers",
        nargs="+",
        type=positive_integer,
        metavar="N",
        default=[1, 2],
        help="worker processes",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, metavar="N", default=64, help="photographs per batch"
    )
    parser.add_argument(
        "--image-size", type=positive_integer, metavar="N", default=224, help="in pixels"
    )
    flags = parser.parse_args(argv)
    packages = versions(sys.executable, "grain", "simplejpeg", "opencv-python-headless")
    report = Report(flags.json, input=packages)
    cores = len(os.sched_getaffinity(0))
    for workers in flags.workers:
        timings = _time(flags, workers)
        ours = timings["ours"].median
        floor = timings["one core"].median / min(workers, cores)
        report.add(
            f"workers {workers}, {flags.image_size} px",
            timings,
            images_per_second=round(flags.batch_size / ours),
            floor=f"{format_seconds(floor)}  ours runs at {floor / ours:.0%} of this speed",
        )


def _time(flags: argparse.Namespace, workers: int) -> dict[str, Timing]:
    overrides = {
        "dataset.data_dir": str(flags.data_dir),
        "dataset.num_workers": str(workers),
        "dataset.image_size": str(flags.image_size),
    }
    config = dnw_jax.load_config(_CONFIGS / "imagenet_mbv1.py", overrides)
    photographs, mesh = data.Photographs.of(config.dataset, "train"), devices.data_mesh()
    steps = range(_BATCHES_IN_TURN * (flags.turns + 2))
    batches = photographs.train_batches(0, flags.batch_size, steps, slice(0, flags.batch_size))

    def read() -> None:
        for batch in itertools.islice(batches, _BATCHES_IN_TURN):
            jax.block_until_ready(devices.batch_of_hosts({"image": batch["image"]}, mesh))

    # The first two times include the start of the workers and batches read ahead.
    ours = [_seconds(read) / _BATCHES_IN_TURN for _ in range(flags.turns + 2)][2:]
    batches.close()
    rng, source = np.random.default_rng(0), photographs.source
    jpegs = [source[index % len(source)]["image"] for index in range(flags.batch_size)]

    def decode() -> None:
        for jpeg in jpegs:
            training_image(jpeg, flags.image_size, rng)

    one_core = [_seconds(decode) for _ in range(flags.turns + 1)][1:]
    return {"ours": Timing(tuple(ours)), "one core": Timing(tuple(one_core))}


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
