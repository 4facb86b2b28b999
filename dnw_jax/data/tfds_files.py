"""Reads datasets that TensorFlow Datasets (TFDS) prepared as ArrayRecord files.

Reading needs no TensorFlow.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dnw_jax.errors import UserError


def open_source(dataset: ConfigDict, split: str) -> Any:
    """Returns the examples of a split, by index, with encoded images.

    Args:
      dataset: the `dataset` section of a config.
      split: the name of the split in TFDS.

    Raises:
      UserError: the files are missing or damaged.
    """
    folder = _prepared_folder(dataset, split)
    with damage_as_user_error(dataset, split):
        import tensorflow_datasets as tfds  # noqa: PLC0415 (slow to import)

        # Decoding with Pillow is a fifth faster than with TFDS, and gives the same pixels.
        return tfds.builder_from_directory(folder).as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )


@contextmanager
def damage_as_user_error(dataset: ConfigDict, split: str) -> Iterator[None]:
    """Turns any error from reading a damaged file into a UserError with the remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TFDS, ArrayRecord and Pillow raise different ones
        raise UserError(
            f"dataset.data_dir = {dataset.data_dir!r}: the files of {dataset.name!r} ({split}) in "
            f"{_prepared_folder(dataset, split)} are damaged ({first_line(error)}).\n"
            f"Delete that folder and prepare it again:\n{_how_to_prepare(dataset)}"
        ) from error


def first_line(error: Exception) -> str:
    """Returns the first line of the error's message, at most 200 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _prepared_folder(dataset: ConfigDict, split: str) -> Path:
    """The folder of the newest version that holds all ArrayRecord files of the split.

    Without this check TFDS would report a missing folder as a dataset of TFRecord files.
    """
    name, data_dir = dataset.name, _data_dir(dataset)
    if complete := _complete_versions(data_dir, name, split):
        return max(complete, key=_version)
    # Users often name the folder of the dataset, or of its version.
    parents = [folder for folder in data_dir.parents[:2] if _complete_versions(folder, name, split)]
    dataset_dir = shlex.quote(str(data_dir / name))
    raise UserError(
        f"dataset.data_dir = {dataset.data_dir!r}: no complete ArrayRecord files of {name!r} "
        f"({split}) in {data_dir / name}.\n"
        + "".join(f"Did you mean dataset.data_dir={str(folder)!r}?\n" for folder in parents)
        + "If another folder has them, set dataset.data_dir to the folder that holds "
        f"{name}/<version>/.\n"
        "If not, prepare them once (only this needs TensorFlow):\n"
        + _how_to_prepare(dataset)
        + "\nIf that folder has a TFRecord copy, replace the last line by:\n"
        f"  prepare/bin/tfds convert_format --dataset_dir={dataset_dir} "
        "--out_file_format=array_record"
    )


def _how_to_prepare(dataset: ConfigDict) -> str:
    folder = shlex.quote(str(_data_dir(dataset)))
    lines = [
        "  python3 -m venv prepare  # TensorFlow needs older versions of some packages",
        "  prepare/bin/pip install 'dnw-jax[prepare]'  # in a clone of dnw_jax: '.[prepare]'",
        f"  prepare/bin/tfds build {dataset.name} --file_format=array_record --data_dir={folder}",
    ]
    if dataset.name == "imagenet2012":
        lines[-1] += " --manual_dir=FOLDER"
        lines.insert(
            0, "  (download ILSVRC2012_img_train.tar and _val.tar to FOLDER: image-net.org)"
        )
    return "\n".join(lines)


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
