"""The training transform of ImageNet on one core, beside Pillow's and tf.data's.

    python -m experiments.benchmarks.decode --data-dir=DIR --tensorflow-python=PYTHON

DIR holds ImageNet as TFDS prepared it; PYTHON is an interpreter with tensorflow (left out: without
tf.data). From encoded JPEG to 224 x 224 pixels: decode, random resized crop, flip. `--reencode`
first brings each photograph to 500 x 375 pixels at JPEG quality 97, as large as ImageNet's files.
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
from experiments.benchmarks.report import (
    Report,
    count,
    folder_with,
    interpreter,
    timing_flags,
    versions,
)
from experiments.benchmarks.roofline import Work

_WORKER = Path(__file__).parent / "decode_worker.py"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what each takes for all images."""
    parser = timing_flags(__doc__)
    is_dataset = folder_with("imagenet2012", "folder of TFDS's datasets")
    parser.add_argument(
        "--data-dir", required=True, type=is_dataset, metavar="DIR", help="ImageNet's"
    )
    parser.add_argument(
        "--tensorflow-python",
        type=interpreter("tensorflow-cpu"),
        metavar="PYTHON",
        help="one with tensorflow-cpu",
    )
    parser.add_argument("--reencode", action="store_true", help="at the size of ImageNet's files")
    parser.add_argument("--images", type=count, metavar="N", default=200, help="how many")
    flags = parser.parse_args(argv)
    others = {"images": versions(sys.executable, "simplejpeg", "opencv-python-headless", "pillow")}
    if flags.tensorflow_python:
        others["tensorflow"] = versions(flags.tensorflow_python, "tensorflow-cpu")
    report = Report(flags.json, **others)
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for index, encoded in enumerate(_encoded(flags.data_dir, flags.images)):
            content = _reencoded(encoded) if flags.reencode else encoded
            (Path(folder) / f"{index:04d}.jpeg").write_bytes(content)
            sizes.append(len(content))
        pythons = {"ours": sys.executable, "pillow": sys.executable}
        if flags.tensorflow_python:
            pythons["tensorflow"] = flags.tensorflow_python
        commands = {name: [python, str(_WORKER), name, folder] for name, python in pythons.items()}
        timings = alternate(commands, flags.turns)
    title = f"{len(sizes)} JPEGs of {sum(sizes) / len(sizes) / 1000:.0f} kB, one core each"
    work = Work(0, sum(sizes) + 3 * 224**2 * len(sizes))  # files read, pixels written
    report.add(title, timings, work, images_per_second=round(len(sizes) / timings["ours"].median))


def _encoded(data_dir: Path, number: int) -> list[bytes]:
    fields = {
        "name": "imagenet2012",
        "data_dir": str(data_dir),
        "num_channels": 3,
        "num_classes": 1000,
    }
    source = Photographs.of(ConfigDict(fields), "train").source
    return [source[index]["image"] for index in range(min(number, len(source)))]


def _reencoded(encoded: bytes) -> bytes:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((500, 375), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=97)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
