"""Small image datasets, decoded once into one uint8 array. Reading needs no TensorFlow."""

import io
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from dnw_jax.errors import UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation per channel, in units where white is 1. One value stands for all
# channels of `synthetic`; cifar10's are the reference's, rounded as there.
STATISTICS: dict[str, Statistics] = {
    "digits": ((0.3053,), (0.3760,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "synthetic": ((0.5,), (0.22,)),
}

# What the data fix of `config.dataset`; the other fields are the user's choice.
_FIXED_FIELDS: dict[str, dict[str, int]] = {
    "digits": {"num_channels": 1, "num_classes": 10},
    "mnist": {"image_size": 28, "num_channels": 1, "num_classes": 10},
    "cifar10": {"image_size": 32, "num_channels": 3, "num_classes": 10},
    "synthetic": {},
}


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
    """Reads one split of the dataset that `dataset` names into memory.

    Args:
      dataset: the `dataset` section of a config: `name`, `data_dir` ("" for TFDS's own default),
        `image_size`, `num_channels`, `num_classes`.
      split: "train" or "test".

    Raises:
      UserError: a field contradicts the data (all such fields are listed), the data are not there
        or cannot be read, or a label is out of range.
    """
    _check_fields(dataset)
    if dataset.name == "synthetic":
        loaded = _synthetic(dataset, split)
    elif dataset.name == "digits":
        loaded = _digits(dataset.image_size, split)
    else:
        loaded = _from_tfds(dataset, split)
    _check_labels(dataset, loaded.labels)
    return loaded


def _check_fields(dataset: ConfigDict) -> None:
    wrong = [
        f"  dataset.{field}={dataset[field]}, must be {right}"
        for field, right in _FIXED_FIELDS[dataset.name].items()
        if dataset[field] != right
    ]
    if dataset.name == "digits" and dataset.image_size < 8:
        wrong.append(f"  dataset.image_size={dataset.image_size}, must be 8 or more")
    if wrong:
        raise UserError("\n".join([f"These fields contradict dataset {dataset.name!r}:", *wrong]))


def _check_labels(dataset: ConfigDict, labels: np.ndarray) -> None:
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        raise UserError(
            f"Dataset {dataset.name!r} has labels {labels.min()}..{labels.max()}, but "
            f"dataset.num_classes={dataset.num_classes} allows 0..{dataset.num_classes - 1}."
        )


def _digits(image_size: int, split: str) -> Split:
    """scikit-learn's 1,797 handwritten digits; every fifth is the test set."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (an extra, and slow to import)
    except ModuleNotFoundError as error:
        raise UserError(
            "dataset.name='digits' needs scikit-learn, which carries the images. Install it:\n"
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
    """Images for tests: each class a smooth pattern of its own, under noise.

    512 for training and 200 for testing, so that the last batch is rarely full.
    """
    size, num_classes = dataset.image_size, dataset.num_classes
    num_examples = 512 if split == "train" else 200
    # The patterns are the same in both splits, the noise is not.
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
    """A split that TensorFlow Datasets prepared as ArrayRecord files."""
    folder = _prepared_folder(dataset, split)
    try:
        return _read(folder, dataset, split)
    except Exception as error:  # of TFDS, ArrayRecord and Pillow: each has its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"dataset.data_dir={dataset.data_dir!r}: the files of {dataset.name!r} ({split}) in "
            f"{folder} are damaged ({reason}).\nDelete that folder and prepare it anew:\n"
            + _how_to_prepare(dataset)
        ) from error


def _read(folder: Path, dataset: ConfigDict, split: str) -> Split:
    import tensorflow_datasets as tfds  # noqa: PLC0415 (slow to import)

    # SkipDecoding and Pillow: a fifth faster than letting TFDS decode, the same pixels.
    source = tfds.builder_from_directory(folder).as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    shape = (dataset.image_size, dataset.image_size, dataset.num_channels)
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    progress = tqdm(total=len(source), desc=f"{dataset.name} {split}", unit="image", disable=None)
    with progress:  # disable=None: silent where stderr is not a terminal
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


def _prepared_folder(dataset: ConfigDict, split: str) -> Path:
    """The newest version's folder that holds all of the split's ArrayRecord files.

    TFDS itself takes a missing folder for a TFRecord dataset and says so, hence this check.
    """
    name, data_dir = dataset.name, _data_dir(dataset)
    if complete := _complete_versions(data_dir, name, split):
        return max(complete, key=_version)
    above = [folder for folder in data_dir.parents[:2] if _complete_versions(folder, name, split)]
    where = shlex.quote(str(data_dir / name))
    raise UserError(
        f"dataset.data_dir={dataset.data_dir!r}: no complete ArrayRecord files of {name!r} "
        f"({split}) in {data_dir / name}.\n"
        + "".join(f"Did you mean dataset.data_dir={str(folder)!r}?\n" for folder in above)
        + "If they are elsewhere, set dataset.data_dir to the folder that holds "
        f"{name}/<version>/.\n"
        "Else prepare them once (only this needs TensorFlow):\n"
        + _how_to_prepare(dataset)
        + "\nor, where that folder already has a TFRecord copy, instead of the last line:\n"
        f"  prepare/bin/tfds convert_format --dataset_dir={where} --out_file_format=array_record"
    )


def _how_to_prepare(dataset: ConfigDict) -> str:
    folder = shlex.quote(str(_data_dir(dataset)))
    return (
        "  python3 -m venv prepare  # TensorFlow asks for older versions of what training uses\n"
        "  prepare/bin/pip install 'dnw-jax[prepare]'  # in a clone of dnw_jax: '.[prepare]'\n"
        f"  prepare/bin/tfds build {dataset.name} --file_format=array_record --data_dir={folder}"
    )


def _data_dir(dataset: ConfigDict) -> Path:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(dataset.data_dir or default).expanduser()


def _complete_versions(data_dir: Path, name: str, split: str) -> list[Path]:
    folders = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    return [folder for folder in folders if _is_complete(folder, name, split)]


def _is_complete(folder: Path, name: str, split: str) -> bool:
    shards = list(folder.glob(f"{name}-{split}.array_record-*-of-*"))
    return bool(shards) and len(shards) == int(shards[0].name.rsplit("-", 1)[1])


def _version(folder: Path) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in folder.name.split("."))
