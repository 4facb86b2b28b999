"""A worker: decodes and crops a folder of JPEGs. Arguments: ours|pillow|tensorflow, folder."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from experiments.benchmarks.alternate import serve

_SIZE = 224


def main(name: str, folder: str) -> None:
    """Serves passes over the folder until killed."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    decoder = {"ours": _ours, "pillow": _pillow, "tensorflow": _tensorflow}[name]
    serve(decoder(files))


def _ours(files: list[bytes]) -> Callable[[], object]:
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from dnw_jax.data.photographs import training_image  # noqa: PLC0415

    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)

    def transform(jpeg: bytes) -> np.ndarray:
        image = training_image(jpeg, _SIZE, rng)
        return image[:, ::-1] if rng.uniform() < 0.5 else image

    return lambda: [transform(jpeg) for jpeg in files]


def _pillow(files: list[bytes]) -> Callable[[], object]:
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    from dnw_jax.data.photographs import random_crop  # noqa: PLC0415

    rng = np.random.default_rng(0)

    def transform(jpeg: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        left, top, width, height = random_crop(*image.size, rng)
        box = (left, top, left + width, top + height)
        image = image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR, box=box)
        array = np.asarray(image)
        return array[:, ::-1] if rng.uniform() < 0.5 else array

    return lambda: [transform(jpeg) for jpeg in files]


def _tensorflow(files: list[bytes]) -> Callable[[], object]:
    import tensorflow as tf  # noqa: PLC0415

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def transform(jpeg: "tf.Tensor") -> "tf.Tensor":
        shape = tf.image.extract_jpeg_shape(jpeg)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
        image = tf.image.resize([image], [_SIZE, _SIZE])[0]
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(files).map(transform, num_parallel_calls=1)
    return lambda: sum(1 for _ in dataset)


if __name__ == "__main__":
    main(*sys.argv[1:])
