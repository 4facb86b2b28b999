"""Numbered checkpoints of a run. Orbax writes them in the background; each read verifies them.

This is the only file that imports orbax. It uses the free functions of Orbax's v1 API and not
`training.Checkpointer`, which (0.12.8) creates the folder even if it only reads, drops a save that
is requested during another save, lists a step before it is on disk, cannot be opened if one step is
damaged, and deletes old steps in place, so a kill can leave half a checkpoint that looks whole.

Orbax loads a flipped byte without an error, and reports truncated files and wrong shapes with
misleading messages. Therefore each checkpoint carries a manifest with the SHA-256 of every array.
"""

import contextlib
import hashlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dnw_jax.errors import UserError, differences
from dnw_jax.platform.agreement import from_first, is_first
from dnw_jax.run import commit

# When one read fails, Orbax abandons the other reads, and Python complains about them like this.
_ABANDONED_READ = re.compile(r"Event loop is closed|coroutine '.*Handler\..*' was never awaited")


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    text = record.pathname + record.getMessage()
    return "/orbax/" not in text and "tensorstore" not in text


# Orbax logs every operation, and every error with its stack trace and the content of files; asyncio
# logs the tasks that Orbax abandons. `Checkpoints` raises the same errors in one line. Records of
# other libraries pass.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_not_from_orbax)


class Checkpoints:
    """The numbered checkpoints in one folder. A context manager: its end waits for the last save.

    It keeps the last `keep` checkpoints, the best one, and that of step 0 if it was saved. Only
    `save` creates, changes or deletes anything on disk.

    A checkpoint is a folder named after its step. It counts only if it is whole, so an interrupted
    save or deletion leaves none, on any file system (`run/commit.py`). It holds the leaves of a
    tree by name (`params/stem/kernel`), and a manifest with the dtype, shape and SHA-256 of each.

    Trees are any nesting of dicts, lists, tuples and other JAX containers. Leaves are JAX or NumPy
    arrays of numbers or bools, or Python or NumPy scalars, which become 0-d arrays. Save PRNG keys
    as `jax.random.key_data`. At least one leaf must have elements.

    Args:
      directory: the folder; the first save creates it.
      keep: how many of the last checkpoints are kept, at least 1.

    Raises:
      UserError: `keep` is less than 1.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep is {keep}; at least 1 checkpoint must be kept.")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._pending_save: tuple[int, Any] | None = None
        self._accuracies: dict[int, float | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending. Waits for a pending save.

        It warns of a checkpoint that lost files after it was saved, and leaves it out if another is
        whole.
        """
        self.wait()
        return commit.whole_steps(self._directory)

    @property
    def latest(self) -> int | None:
        """The highest step that has a checkpoint, or None."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the highest accuracy (the later step of equal ones), or None.

        It ignores checkpoints that are damaged or were saved without an accuracy.
        """
        scored = []
        for step in self.steps:
            with contextlib.suppress(UserError):
                if (accuracy := self.accuracy(step)) is not None:
                    scored.append((accuracy, step))
        return max(scored)[1] if scored else None

    def accuracy(self, step: int) -> float | None:
        """Returns the accuracy that `step` was saved with. Raises UserError as `restore` does."""
        if step not in self._accuracies:
            self._accuracies[step] = self._manifest(step)["accuracy"]
        return self._accuracies[step]

    def save(self, step: int, tree: Any, accuracy: float | None = None) -> None:
        """Starts to save `tree`. Afterwards its arrays may be overwritten or donated.

        It first waits for an earlier save. A step that already has a checkpoint is left as it is.

        Raises:
          UserError: this or the earlier save cannot be written, for instance on a full disk.
          TypeError: a leaf is neither a number nor an array of numbers or bools.
        """
        self.wait()
        is_saved = np.bool_(commit.problem(self._folder(step)) is None)
        if from_first(is_saved):  # another process may see an old listing
            return
        accuracy = None if accuracy is None else float(accuracy)
        leaves = {name: _to_host(name, leaf) for name, leaf in _named_leaves(tree).items()}
        entries = {
            name: {"type": _dtype_and_shape(leaf), "sha256": _digest(leaf)}
            for name, leaf in leaves.items()
        }
        manifest = {"accuracy": accuracy, "leaves": entries}
        context = ocp.Context()
        # If a folder could not be created in the background, Orbax would wait 5 minutes for it.
        context.asynchronous.create_directories_asynchronously = False
        context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE  # without a rename
        # Another host may see for a while what process 0 deletes here. It must not refuse to save.
        context.file.skip_sync_file_validations = True
        with self._writing(step), context:
            if is_first():
                commit.delete_uncommitted(self._directory)
                commit.delete(self._folder(step))
            response = ocp.save_async(
                self._folder(step),
                # Orbax refuses arrays without elements; the manifest alone holds those. Orbax
                # copies NumPy arrays before `save_async` returns.
                {name: leaf for name, leaf in leaves.items() if leaf.size},
                custom_metadata={"manifest": manifest, "sha256": _digest_of_manifest(manifest)},
            )
        self._pending_save = step, response
        self._accuracies[step] = accuracy

    def wait(self) -> None:
        """Waits until the pending save is on disk, then deletes the checkpoints not to be kept."""
        if self._pending_save is None:
            return
        step, response = self._pending_save
        with self._writing(step):
            response.result()  # also ends Orbax's thread
        self._pending_save = None
        if is_first():
            commit.write_file_list(self._folder(step))
            steps = self.steps
            commit.delete_all_but({0, *steps[-self._keep :], self.best or 0}, self._directory)

    def restore(self, step: int, like: Any, *, whole: bool = True) -> Any:
        """Returns the tree saved at `step`, in the containers of `like`.

        Args:
          step: one of `steps`.
          like: gives the expected shape and dtype of every leaf. Where it has a `jax.Array` or
            `jax.ShapeDtypeStruct`, the result has a `jax.Array` (with the same sharding, if any),
            elsewhere a NumPy array.
          whole: if False, `like` is a dict, and only the top-level entries that it names are read
            and verified; the checkpoint may hold others.

        Raises:
          UserError: the checkpoint does not exist, is damaged, or does not fit `like`; then the
            message lists every leaf that differs.
        """
        saved, expected = self._manifest(step)["leaves"], _named_leaves(like)
        if not whole:
            saved = {name: leaf for name, leaf in saved.items() if name.partition("/")[0] in like}
        self._check_fit(step, saved, expected)
        abstract = {name: _abstract(leaf) for name, leaf in expected.items() if np.size(leaf)}
        context = ocp.Context()
        context.pytree.loading.partial_load = not whole
        with self._reading(step), context:
            arrays = ocp.load(self._folder(step), abstract)
        for name, leaf in expected.items():
            array = arrays[name] if name in abstract else np.empty(leaf.shape, leaf.dtype)
            digest, saved_digest = _digest(array), saved[name]["sha256"]
            if None not in (digest, saved_digest) and digest != saved_digest:
                raise self._damage_error(step, f"the SHA-256 of {name} is not what was saved")
            arrays[name] = _place(array, leaf)
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected])

    def _folder(self, step: int) -> Path:
        return self._directory / str(step)

    def _manifest(self, step: int) -> dict[str, Any]:
        self.wait()
        if not commit.is_committed(self._folder(step)):
            raise UserError(
                f"{self._directory} holds no checkpoint of step {step}; "
                f"there are: {', '.join(map(str, self.steps)) or 'none'}."
            )
        if problem := commit.problem(self._folder(step)):
            raise self._damage_error(step, problem)
        with self._reading(step):
            metadata = ocp.checkpointables_metadata(self._folder(step)).custom_metadata
            manifest = metadata["manifest"]
            intact = _digest_of_manifest(manifest) == metadata["sha256"]
        if not intact:
            raise self._damage_error(step, "the SHA-256 of its manifest is not what was saved")
        return manifest

    def _check_fit(self, step: int, saved: dict[str, Any], like: dict[str, Any]) -> None:
        expected = {name: _dtype_and_shape(leaf) for name, leaf in like.items()}
        found = {name: entry["type"] for name, entry in saved.items()}
        if different := differences(expected, found):
            raise UserError(
                f"{self._folder(step)}: this checkpoint does not fit the model:\n"
                + "\n".join(different)
                + "\nUse the config that it was trained with, or another workdir."
            )

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # a lost process: nothing is wrong with the disk
            self._pending_save = None
            raise
        except Exception as error:
            self._pending_save = None
            raise UserError(
                f"{self._folder(step)}: this checkpoint could not be written ({_reason(error)}). "
                f"Make room there or choose another workdir; {self._resume_point(step)}."
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        # If one read fails, each read that Orbax abandons would print a stack trace.
        hook = sys.unraisablehook
        sys.unraisablehook = lambda event: (
            None if _ABANDONED_READ.search(str(event.exc_value)) else hook(event)
        )
        try:
            yield
        except Exception as error:  # the hook stays: Orbax abandons the other reads later
            warnings.filterwarnings("ignore", _ABANDONED_READ.pattern, RuntimeWarning)
            raise self._damage_error(step, _reason(error)) from error
        sys.unraisablehook = hook

    def _damage_error(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder(step)}: this checkpoint is damaged ({reason}). Delete that folder; "
            f"{self._resume_point(step)}."
        )

    def _resume_point(self, without: int) -> str:
        steps = [step for step in self.steps if step != without]
        if not steps:
            return "there is no other checkpoint, so training then starts from step 0"
        return f"training then resumes from step {steps[-1]}"


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves have the same name: a key that contains '/' is ambiguous")
    return named


def _spans_hosts(sharding: jax.sharding.Sharding | None) -> bool:
    """Returns whether no host holds the whole array."""
    return sharding is not None and not (
        sharding.is_fully_addressable or sharding.is_fully_replicated
    )


def _to_host(name: str, leaf: Any) -> np.ndarray | jax.Array:
    if isinstance(leaf, jax.Array) and _spans_hosts(leaf.sharding):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm":
        raise TypeError(f"{name}: a checkpoint holds numbers and bools, not {array.dtype}")
    return array


def _dtype_and_shape(leaf: Any) -> str:
    """Returns dtype and shape, such as `float32[3, 4]`."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def _digest(array: np.ndarray | jax.Array) -> str | None:
    """Returns the SHA-256 of the array's bytes, or None if they are spread over hosts."""
    if isinstance(array, jax.Array):
        return None
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _digest_of_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _abstract(leaf: Any) -> Any:
    """Returns the leaf as Orbax loads it: a NumPy array, unless each host needs only its part."""
    return leaf if _spans_hosts(getattr(leaf, "sharding", None)) else np.ndarray


def _place(array: np.ndarray | jax.Array, like: Any) -> np.ndarray | jax.Array:
    if isinstance(array, jax.Array) or not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return array
    # An uncommitted array stays uncommitted: a committed copy would make jit compile again.
    if like.sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return jax.numpy.asarray(array)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
