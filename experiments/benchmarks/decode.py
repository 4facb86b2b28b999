"""The training transform of ImageNet on one core, beside Pillow's and tf.data's.

    python -m experiments.benchmarks.decode --data-dir=DIR --tensorflow-python=PYTHON

DIR holds ImageNet as TFDS prepared it; PYTHON is an interpreter with tensorflow (left out: without
tf.data). From encoded JPEG to 224 x 224 pixels: decode, random resized crop, flip. `--reencode`
first brings each photograph to 500 x 375 pixels at JPEG quality 97, as large as ImageNet's files.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from dnw_jax.data import Photographs
from experiments.benchmarks.alternate import alternate

_WORKER = Path(__file__).parent / "decode_worker.py"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the images per second and core of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--tensorflow-python", help="an interpreter with tensorflow")
    parser.add_argument("--reencode", action="store_true")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for index, encoded in enumerate(_encoded(flags.data_dir, flags.images)):
            content = _reencoded(encoded) if flags.reencode else encoded
            (Path(folder) / f"{index:04d}.jpeg").write_bytes(content)
            sizes.append(len(content))
        print(f"{len(sizes)} JPEGs of {sum(sizes) / len(sizes) / 1000:.0f} kB, one core each")
        pythons = {"ours": sys.executable, "pillow": sys.executable}
        if flags.tensorflow_python:
            pythons["tensorflow"] = flags.tensorflow_python
        commands = {name: [python, str(_WORKER), name, folder] for name, python in pythons.items()}
        timings = alternate(commands, flags.turns)
    ours = timings["ours"].median
    rows = {}
    for name, timing in timings.items():
        rate = len(sizes) / timing.median
        rows[name] = {"images_per_second": rate, "seconds": timing.seconds}
        print(f"{name:10s} {rate:6.0f} img/s  {timing}  ours / it {timing.median / ours:.2f}")
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1) + "\n")


def _encoded(data_dir: str, number: int) -> list[bytes]:
    fields = {"name": "imagenet2012", "data_dir": data_dir, "num_channels": 3, "num_classes": 1000}
    source = Photographs.of(ConfigDict(fields), "train").source
    return [source[index]["image"] for index in range(min(number, len(source)))]


def _reencoded(encoded: bytes) -> bytes:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((500, 375), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=97)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
