"""Training batches of ImageNet that worker processes make, with nothing else to do.

    python -m experiments.benchmarks.input_pipeline --data-dir=DIR

DIR holds ImageNet as TFDS prepared it. For each number of workers: seconds for a batch as it comes
out of the pipeline, cropped, flipped and on the device; beside it the same photographs decoded and
cropped by this process alone, on one core: what all workers' cores do in that time is the floor of
the pipeline. What a run waits for its photographs is `input_wait` in its metrics.jsonl.
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
from experiments.benchmarks.report import Report, count, folder_with, timing_flags, versions

_BATCHES_IN_TURN = 4
_CONFIGS = Path(__file__).parents[2] / "configs"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each number of workers."""
    parser = timing_flags(__doc__)
    is_dataset = folder_with("imagenet2012", "folder of TFDS's datasets")
    parser.add_argument(
        "--data-dir", required=True, type=is_dataset, metavar="DIR", help="ImageNet's"
    )
    parser.add_argument(
        "--workers", nargs="+", type=count, metavar="N", default=[1, 2], help="processes"
    )
    parser.add_argument("--batch-size", type=count, metavar="N", default=64, help="photographs")
    parser.add_argument("--image-size", type=count, metavar="N", default=224, help="in pixels")
    flags = parser.parse_args(argv)
    packages = versions(sys.executable, "grain", "simplejpeg", "opencv-python-headless")
    report = Report(flags.json, input=packages)
    cores = len(os.sched_getaffinity(0))
    for workers in flags.workers:
        timings = _timed(flags, workers)
        ours = timings["ours"].median
        floor = timings["one core"].median / min(workers, cores)
        report.add(
            f"workers {workers}, {flags.image_size} px",
            timings,
            images_per_second=round(flags.batch_size / ours),
            floor=f"{format_seconds(floor)}  {floor / ours:.0%} of it reached",
        )


def _timed(flags: argparse.Namespace, workers: int) -> dict[str, Timing]:
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

    # At first what was read ahead, and the start of the workers.
    ours = [_seconds(read) / _BATCHES_IN_TURN for _ in range(flags.turns + 2)][2:]
    batches.close()
    rng, source = np.random.default_rng(0), photographs.source
    encoded = [source[index % len(source)]["image"] for index in range(flags.batch_size)]

    def decode() -> None:
        for each in encoded:
            training_image(each, flags.image_size, rng)

    one_core = [_seconds(decode) for _ in range(flags.turns + 1)][1:]
    return {"ours": Timing(tuple(ours)), "one core": Timing(tuple(one_core))}


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
