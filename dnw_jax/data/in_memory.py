"""Decodes a small image dataset once into one uint8 array. Reading needs no TensorFlow."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from dnw_jax.data.dataset_info import check_fields
from dnw_jax.data.tfds_files import damage_as_user_error, open_source
from dnw_jax.errors import UserError


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
      images: uint8 [examples, height, width, channels].
      labels: int32 [examples], 0..num_classes-1.
    """

    images: np.ndarray
    labels: np.ndarray


def load_split(dataset: ConfigDict, split: Literal["train", "test"]) -> Split:
    """Returns one split of the dataset `dataset.name`.

    Args:
      dataset: the `dataset` section of a config: `name`, `data_dir` (empty: the default of TFDS),
        `image_size`, `num_channels`, `num_classes`.
      split: "train" or "test".

    Raises:
      UserError: fields contradict the data, the files are missing or cannot be read, or a label is
        out of range.
    """
    check_fields(dataset)
    if dataset.name == "synthetic":
        loaded = _synthetic(dataset, split)
    elif dataset.name == "digits":
        loaded = _digits(dataset.image_size, split)
    else:
        loaded = _from_tfds(dataset, split)
    _check_labels(dataset, loaded.labels)
    return loaded


def _check_labels(dataset: ConfigDict, labels: np.ndarray) -> None:
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        raise UserError(
            f"dataset.num_classes = {dataset.num_classes}: must be at least {labels.max() + 1}; "
            f"{dataset.name!r} has labels {labels.min()}..{labels.max()}"
        )


def _digits(image_size: int, split: str) -> Split:
    """The 1,797 handwritten digits of scikit-learn. Every fifth image is a test image."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (an extra, and slow to import)
    except ModuleNotFoundError as error:
        raise UserError(
            "dataset.name = 'digits': needs scikit-learn, which contains the images. Install it:\n"
            "  pip install 'dnw-jax[digits]'"
        ) from error

    digits = load_digits()
    in_test = np.arange(len(digits.target)) % 5 == 0
    chosen = in_test if split == "test" else ~in_test
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    resized = [Image.fromarray(i).resize(size, Image.Resampling.BILINEAR) for i in images]
    return Split(
        np.stack([np.asarray(image) for image in resized])[..., None],
        digits.target[chosen].astype(np.int32),
    )


def _synthetic(dataset: ConfigDict, split: str) -> Split:
    """Images for tests: a smooth random pattern for each class, and noise.

    512 are for training and 200 for testing, so the last batch is rarely full.
    """
    size, num_classes = dataset.image_size, dataset.num_classes
    num_examples = 512 if split == "train" else 200
    # Both splits have the same patterns and different noise.
    coefficients = np.random.default_rng(0).normal(size=(num_classes, 4, 4, dataset.num_channels))
    waves = np.cos(np.pi * np.outer(np.arange(4), np.arange(size) + 0.5) / size)
    patterns = np.einsum("kuvc,uy,vx->kyxc", coefficients, waves, waves)
    patterns /= patterns.std(axis=(1, 2, 3), keepdims=True)

    labels = np.arange(num_examples) % num_classes
    rng = np.random.default_rng(1 if split == "train" else 2)
    noise = rng.normal(size=(num_examples, size, size, dataset.num_channels))
    images = np.clip(127.5 + 40.0 * patterns[labels] + 40.0 * noise, 0, 255)
    return Split(images.astype(np.uint8), labels.astype(np.int32))


def _from_tfds(dataset: ConfigDict, split: str) -> Split:
    source = open_source(dataset, split)
    shape = (dataset.image_size, dataset.image_size, dataset.num_channels)
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    # disable=None shows no progress bar if stderr is not a terminal.
    progress = tqdm(total=len(source), desc=f"{dataset.name} {split}", unit="image", disable=None)
    with progress, damage_as_user_error(dataset, split):
        for start in range(0, len(source), 1000):
            indices = range(start, min(start + 1000, len(source)))
            for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
                images[index] = _decode(example["image"]).reshape(shape)
                labels[index] = example["label"]
            progress.update(len(indices))
    return Split(images, labels)


def _decode(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image)
