"""What the processes of a run agree on: errors, signals, values. One process agrees with itself.

All processes make the same compiled steps in the same order; a process that leaves alone makes the
others wait for ever. So whatever only one process may see (a signal, a damaged file, its clock, a
listing) passes through this file before it changes what a process does next. Every function here
communicates: all processes must call it at the same point of the run.
"""

import contextlib
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dnw_jax.errors import UserError
from dnw_jax.platform.interrupts import Interrupts

_T = TypeVar("_T")

_ERROR = -1  # beside the numbers of signals, which are positive
# A network file system may show a new file to another host some seconds later.
_VISIBLE_WITHIN_SECONDS = 30


def is_first() -> bool:
    """Returns whether this is process 0, which writes a run's files and prints its progress."""
    return jax.process_index() == 0


@contextlib.contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Hides what is printed to stdout in this context, except by process 0. Also a decorator."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def agreed_stop(
    error: Exception | None, interrupts: Interrupts | None = None
) -> BaseException | None:
    """Returns why all processes stop now, or None if no process has a reason.

    Args:
      error: of this process, or None.
      interrupts: the signals of this process, if they stop the run at this point.

    Returns:
      `error` if this process has one; a UserError if only other processes have one;
      KeyboardInterrupt with the largest number of the signals if some process received one.
    """
    number = (interrupts and interrupts.number) or 0
    status = number if error is None else _ERROR
    statuses = _gathered(np.int32(status))
    if error is not None:
        return error
    if (statuses == _ERROR).any():
        failed = ", ".join(map(str, np.flatnonzero(statuses == _ERROR)))
        return UserError(f"stopped because of an error in process {failed}, which reports it")
    number = int(statuses.max())
    return KeyboardInterrupt(number) if number else None


@contextlib.contextmanager
def together(interrupts: Interrupts | None = None) -> Iterator[None]:
    """Runs a block that does not communicate; if it fails in one process, all processes stop.

    Args:
      interrupts: the signals of this process, if they stop the run at this point.

    Raises:
      As `agreed_stop`, at the end of the block.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    stop = agreed_stop(error, interrupts)
    if stop is not None:
        raise stop


def from_first(tree: _T) -> _T:
    """Returns the `tree` of process 0, with NumPy arrays; every bit arrives, also of -0.0 and NaN.

    Args:
      tree: of arrays with the same shapes and dtypes in every process.
    """
    if jax.process_count() == 1:
        return tree
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    # As bytes: sums of floats, by which JAX sends values, would turn -0.0 into 0.0.
    data = np.concatenate([np.ravel(array).view(np.uint8) for array in arrays])
    data = multihost_utils.broadcast_one_to_all(data)
    starts = np.cumsum([0, *(array.nbytes for array in arrays)])
    leaves = [
        data[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        for start, array in zip(starts[:-1], arrays, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def largest(value: float) -> float:
    """Returns the largest of the values of all processes, in single precision."""
    return float(_gathered(np.float32(value)).max())


def total(value: int) -> int:
    """Returns the sum of the values of all processes, which are below 2**31."""
    return int(_gathered(np.int32(value)).sum(dtype=np.int64))


def check_equal(**contents: bytes) -> None:
    """Checks that all processes hold the same bytes.

    Args:
      **contents: the bytes, by a name for the message; "_" stands for a space.

    Raises:
      UserError: names what differs, and in which processes.
    """
    checksums = _gathered(np.array([zlib.crc32(data) for data in contents.values()], np.uint32))
    problems = [
        f"{name.replace('_', ' ')} of process {process}"
        for process in range(len(checksums))
        for name, same in zip(contents, checksums[process] == checksums[0], strict=True)
        if not same
    ]
    if problems:
        raise UserError(
            f"all processes must do the same, but these differ from process 0: "
            f"{', '.join(problems)}. Start the same command on the same files everywhere"
        )


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same `folder`: process 0 leaves a mark, the others look.

    Raises:
      UserError: some process does not see the mark.
    """
    if jax.process_count() == 1:
        return
    token = from_first(np.frombuffer(uuid.uuid4().bytes, np.uint8))
    mark = folder / f".seen-by-all-{token.tobytes().hex()}"
    with together():
        if is_first():
            mark.touch()
    seen = _gathered(np.bool_(_appears(mark)))
    if is_first():
        with contextlib.suppress(OSError):
            mark.unlink()
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(
            f"{folder} is not the same folder for all processes: process {blind} does not see the "
            "file that process 0 wrote there. Choose a --workdir on storage that all hosts share"
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _gathered(value: Any) -> np.ndarray:
    """Returns the values of all processes, [processes, ...]."""
    return multihost_utils.process_allgather(value)
