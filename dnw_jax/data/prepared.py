"""Datasets that TensorFlow Datasets prepared as ArrayRecord files. Reading needs no TensorFlow."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dnw_jax.errors import UserError


def open_source(dataset: ConfigDict, split: str) -> Any:
    """The examples of a split, by number, with their images still encoded.

    Raises:
      UserError: the files are not there, or damaged.
    """
    folder = _prepared_folder(dataset, split)
    with damage_as_user_error(dataset, split):
        import tensorflow_datasets as tfds  # noqa: PLC0415 (slow to import)

        # SkipDecoding and Pillow: a fifth faster than letting TFDS decode, the same pixels.
        return tfds.builder_from_directory(folder).as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )


@contextmanager
def damage_as_user_error(dataset: ConfigDict, split: str) -> Iterator[None]:
    """Turns whatever a damaged file leads to into a UserError that says how to mend it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of TFDS, ArrayRecord and Pillow: each has its own
        raise UserError(
            f"dataset.data_dir={dataset.data_dir!r}: the files of {dataset.name!r} ({split}) in "
            f"{_prepared_folder(dataset, split)} are damaged ({reason(error)}).\n"
            f"Delete that folder and prepare it anew:\n{_how_to_prepare(dataset)}"
        ) from error


def reason(error: Exception) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


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
    lines = [
        "  python3 -m venv prepare  # TensorFlow asks for older versions of what training uses",
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
