"""Training batches of ImageNet that worker processes make a second, with nothing else to do.

    python -m experiments.benchmarks.input_pipeline --data-dir=DIR

DIR holds ImageNet as TFDS prepared it. For each number of workers: images a second as they come out
of the pipeline, cropped, flipped and on the device, with nothing else to do. What a run waits for
them is `input_wait` in its metrics.jsonl.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import jax

import dnw_jax
from dnw_jax import data, devices

_BATCHES_IN_TURN = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workers", default="1,2", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    flags = parser.parse_args(argv)
    rows = []
    for workers in map(int, flags.workers.split(",")):
        rates = _rates(flags, workers)
        rows.append({"workers": workers, "images_per_second": rates})
        bytes_per_second = median(rates) * flags.image_size**2 * 3
        print(
            f"{workers} workers, {flags.image_size} px: {median(rates):.0f} img/s "
            f"({min(rates):.0f} .. {max(rates):.0f}), {bytes_per_second / 1e6:.0f} MB/s of pixels",
            flush=True,
        )
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")


def _rates(flags: argparse.Namespace, workers: int) -> list[float]:
    overrides = {
        "dataset.data_dir": flags.data_dir,
        "dataset.num_workers": str(workers),
        "dataset.image_size": str(flags.image_size),
    }
    config = dnw_jax.load_config("configs/imagenet_mbv1.py", overrides)
    photographs, mesh = data.Photographs.of(config.dataset, "train"), devices.data_mesh()
    steps = range(_BATCHES_IN_TURN * (flags.turns + 2))
    batches = photographs.train_batches(0, flags.batch_size, steps, slice(0, flags.batch_size))
    rates = []
    for _ in range(flags.turns + 2):
        start = time.perf_counter()
        for batch in itertools.islice(batches, _BATCHES_IN_TURN):
            jax.block_until_ready(devices.batch_of_hosts({"image": batch["image"]}, mesh))
        rates.append(_BATCHES_IN_TURN * flags.batch_size / (time.perf_counter() - start))
    batches.close()
    return rates[2:]  # at first what was read ahead, and the start of the workers


if __name__ == "__main__":
    main()
