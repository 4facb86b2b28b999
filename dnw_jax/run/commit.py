"""Which folders are whole checkpoints, also where a folder cannot be renamed in one piece.

gcsfuse renames a folder of a bucket file by file, so a kill leaves two half folders. Therefore no
folder is renamed. A checkpoint is written where it stays, and counts as soon as a small file, the
mark, lies in it. Orbax writes the mark last; a deletion removes it first. So a kill at any moment
leaves either a whole checkpoint or a folder without a mark.

A list of all files with their sizes is written after the mark. It shows that a checkpoint lost
files later: in a power failure, or when a copy of the workdir was interrupted.
"""

import contextlib
import json
import os
import shutil
import warnings
from pathlib import Path

MARK = "commit_success.txt"  # Orbax chose the name
# Its name comes before that of the mark: a copy in the order of names brings the list first.
FILE_LIST = "_files.json"
# Earlier versions wrote a checkpoint into a folder with this suffix and then renamed it.
_TEMPORARY = ".orbax-checkpoint-tmp"


def is_committed(folder: Path) -> bool:
    """Returns whether the folder was a whole checkpoint once, and is not being deleted."""
    if not (folder / MARK).is_file():
        return False
    renamed_from = folder.with_name(folder.name + _TEMPORARY)
    return (folder / FILE_LIST).is_file() or not renamed_from.exists()


def problem(folder: Path) -> str | None:
    """Returns what a checkpoint lacks, such as "state/d/1f is missing", or None if it is whole.

    Checkpoints of earlier versions have no list of files, and neither has one whose run was killed
    before it wrote the list. For them the mark alone counts.
    """
    if not is_committed(folder):
        return f"{MARK} is missing"
    try:
        sizes = json.loads((folder / FILE_LIST).read_bytes())
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except (FileNotFoundError, NotADirectoryError) as error:
        name = Path(error.filename).relative_to(folder).as_posix()
        return None if name == FILE_LIST else f"{name} is missing"
    except (ValueError, AttributeError):
        return f"{FILE_LIST} is not a list of files"
    return None


def whole_steps(directory: Path) -> list[int]:
    """Returns the steps of the whole checkpoints, ascending, and warns of those that lost files.

    If all checkpoints lost files, it returns their steps: then reading one explains what is wrong,
    and a run does not start from the beginning without a word.
    """
    problems = {folder: problem(folder) for folder in _numbered(directory)}
    # Another process may have deleted a checkpoint in the meantime. That is no problem.
    problems = {folder: found for folder, found in problems.items() if is_committed(folder)}
    whole = [folder for folder, found in problems.items() if not found]
    for folder, found in problems.items():
        if whole and found:
            warnings.warn(f"{folder}: this checkpoint is skipped because {found}", stacklevel=3)
    return sorted(int(folder.name) for folder in whole or problems)


def write_file_list(folder: Path) -> None:
    """Lists the files of a checkpoint. If the list cannot be written, the mark alone counts."""
    temporary = folder / f"{FILE_LIST}.tmp"
    with contextlib.suppress(OSError):
        files = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        temporary.write_text(json.dumps(sizes, indent=1))
        os.replace(temporary, folder / FILE_LIST)


def delete_uncommitted(directory: Path) -> None:
    """Deletes what interrupted saves and deletions left."""
    # First the half that an interrupted rename created: without the other half it would count.
    for folder in _numbered(directory):
        if not is_committed(folder):
            delete(folder)
    for folder in directory.glob(f"*{_TEMPORARY}*"):
        delete(folder)


def delete_all_but(steps: set[int], directory: Path) -> None:
    """Deletes all other checkpoints, and what interrupted saves and deletions left."""
    delete_uncommitted(directory)
    for folder in _numbered(directory):
        if int(folder.name) not in steps:
            delete(folder)


def delete(folder: Path) -> None:
    """Deletes a checkpoint or the rest of one, if it exists. A failure is only a warning."""
    try:
        (folder / MARK).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        warnings.warn(f"{folder}: this folder could not be deleted ({error})", stacklevel=2)


def _numbered(directory: Path) -> list[Path]:
    folders = directory.glob("*/") if directory.is_dir() else ()
    return [folder for folder in folders if folder.name.isdecimal()]
