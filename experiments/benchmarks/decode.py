"""Times the training transform of ImageNet on one core, beside Pillow's and tf.data's.

    python -m experiments.benchmarks.decode --data-dir=DIR --tensorflow-python=PYTHON

DIR holds ImageNet as TFDS prepared it. PYTHON is an interpreter with tensorflow; without it
tf.data is not timed. The transform decodes a JPEG, crops a random part, resizes it to 224 x 224
pixels and flips it. `--reencode` first resizes each photograph to 500 x 375 pixels at JPEG
quality 97, which makes the files of TFDS's small sample as large as ImageNet's.
"""

import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from dnw_jax.data import Photographs
from experiments.benchmarks.alternate import alternate
from experiments.benchmarks.flags import (
    add_imagenet_flag,
    interpreter,
    positive_integer,
    timing_parser,
    versions,
)
from experiments.benchmarks.report import Report
from experiments.benchmarks.roofline import Work

_WORKER = Path(__file__).parent / "decode_worker.py"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the time that each decoder takes for all images."""
    parser = timing_parser(__doc__)
    add_imagenet_flag(parser)
    parser.add_argument(
        "--tensorflow-python",
        type=interpreter("tensorflow-cpu"),
        metavar="PYTHON",
        help="interpreter with tensorflow-cpu",
    )
    parser.add_argument("--reencode", action="store_true", help="enlarges the files")
    parser.add_argument(
        "--images", type=positive_integer, metavar="N", default=200, help="number of photographs"
    )
    flags = parser.parse_args(argv)
    others = {"images": versions(sys.executable, "simplejpeg", "opencv-python-headless", "pillow")}
    if flags.tensorflow_python:
        others["tensorflow"] = versions(flags.tensorflow_python, "tensorflow-cpu")
    report = Report(flags.json, **others)
    with tempfile.TemporaryDirectory() as folder:
        jpegs = _read_jpegs(flags.data_dir, flags.images)
        if flags.reencode:
            jpegs = [_reencode(jpeg) for jpeg in jpegs]
        for index, jpeg in enumerate(jpegs):
            (Path(folder) / f"{index:04d}.jpeg").write_bytes(jpeg)
        pythons = {"ours": sys.executable, "pillow": sys.executable}
        if flags.tensorflow_python:
            pythons["tensorflow"] = flags.tensorflow_python
        commands = {name: [python, str(_WORKER), name, folder] for name, python in pythons.items()}
        timings = alternate(commands, flags.turns)
    num_bytes = sum(map(len, jpegs))
    title = f"{len(jpegs)} JPEGs of {num_bytes / len(jpegs) / 1000:.0f} kB, one core each"
    work = Work(0, num_bytes + 3 * 224**2 * len(jpegs))  # files read, pixels written
    report.add(title, timings, work, images_per_second=round(len(jpegs) / timings["ours"].median))


def _read_jpegs(data_dir: Path, number: int) -> list[bytes]:
    fields = {
        "name": "imagenet2012",
        "data_dir": str(data_dir),
        "num_channels": 3,
        "num_classes": 1000,
    }
    source = Photographs.of(ConfigDict(fields), "train").source
    return [source[index]["image"] for index in range(min(number, len(source)))]


def _reencode(jpeg: bytes) -> bytes:
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((500, 375), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=97)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
