"""Numbered checkpoints of a run, with Orbax: written in the background, checked when read.

The only file that imports orbax, and of its v1 API only the free functions. `training.Checkpointer`
(0.12.8) would create the folder when it is only read, forget a save asked for during another one,
list a step before it is on disk, fail to open beside one damaged step, and delete old steps in
place: a kill in the middle of that leaves half a checkpoint that looks whole.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dnw_jax.errors import UserError

# Orbax's mark of a folder that is not (or no longer) a checkpoint.
_TEMPORARY = ".orbax-checkpoint-tmp"
# What becomes of the reads that Orbax abandons when one of them fails.
_ABANDONED = re.compile(r"Event loop is closed|coroutine '.*Handler\..*' was never awaited")


def _not_of_orbax(record: logging.LogRecord) -> bool:
    text = record.pathname + record.getMessage()
    return "/orbax/" not in text and "tensorstore" not in text


# Orbax logs each of its steps, and what it raises with traces and whole files; asyncio logs the
# tasks that it leaves behind. We raise the same in one line. Other log records are left alone.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_not_of_orbax)


class Checkpoints:
    """The numbered checkpoints of one folder: the last `keep`, the best, and that of step 0.

    A context manager. Whoever saves step 0 wants to keep where the run started from.

    A checkpoint is a folder named by its step and appears in one piece: a save that is interrupted
    leaves none. It holds the tree's leaves by name (`params/stem/kernel`) and a manifest with the
    dtype, shape and SHA-256 of each. Only saving creates or changes anything on disk.

    Trees are any nesting of dicts, lists, tuples and other JAX containers; leaves are JAX or NumPy
    arrays of numbers or bools, or Python or NumPy scalars (kept as 0-d arrays). PRNG keys go in as
    `jax.random.key_data`. At least one leaf must hold data.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep is {keep}; at least 1 checkpoint must be kept.")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._saving: tuple[int, Any] | None = None
        self._accuracies: dict[int, float | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; a save under way is waited for."""
        self.wait()
        folders = self._directory.glob("*/") if self._directory.is_dir() else ()
        return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())

    @property
    def latest(self) -> int | None:
        """The highest step that has a checkpoint."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of highest accuracy, among equals the later; None if none has an accuracy.

        A damaged checkpoint is passed over.
        """
        scored = []
        for step in self.steps:
            with contextlib.suppress(UserError):
                if (accuracy := self.accuracy(step)) is not None:
                    scored.append((accuracy, step))
        return max(scored)[1] if scored else None

    def accuracy(self, step: int) -> float | None:
        """The accuracy that `step` was saved with. Raises UserError as `restore` does."""
        if step not in self._accuracies:
            self._accuracies[step] = self._manifest(step)["accuracy"]
        return self._accuracies[step]

    def save(self, step: int, tree: Any, accuracy: float | None = None) -> None:
        """Begins to save `tree`; when this returns, its arrays may be overwritten or donated.

        Waits for an earlier save first. A step that already has a checkpoint is left as it is.
        Raises UserError if this or the earlier save cannot be written, as on a full disk.
        """
        if step in self.steps:
            return
        accuracy = None if accuracy is None else float(accuracy)
        leaves = {name: _to_host(name, leaf) for name, leaf in _named_leaves(tree).items()}
        entries = {n: {"type": _type(x), "sha256": _digest(x)} for n, x in leaves.items()}
        manifest = {"accuracy": accuracy, "leaves": entries}
        # If a folder could not be made in the background, Orbax would wait 5 minutes for it.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        with self._writing(step), ocp.Context(async_options=options):
            response = ocp.save_async(
                self._folder(step),
                # Arrays without elements, which Orbax refuses, live in the manifest alone. NumPy
                # arrays are copied before this returns.
                {name: leaf for name, leaf in leaves.items() if leaf.size},
                custom_metadata={"manifest": manifest, "sha256": _digest_of_manifest(manifest)},
            )
        self._saving = step, response
        self._accuracies[step] = accuracy

    def wait(self) -> None:
        """Waits until the save under way is on disk; then deletes what need not be kept."""
        if self._saving is None:
            return
        step, response = self._saving
        with self._writing(step):
            response.result()  # also ends Orbax's thread
        self._saving = None
        if jax.process_index() == 0:
            self._delete_old()

    def close(self) -> None:
        """Waits for the save under way."""
        self.wait()

    def restore(self, step: int, like: Any) -> Any:
        """The tree saved at `step`, in the containers of `like`.

        `like` gives the expected shape and dtype of every leaf: a `jax.Array` or
        `jax.ShapeDtypeStruct` is answered by a `jax.Array` (placed by its sharding, if it has one),
        anything else by a NumPy array. Raises UserError if there is no such checkpoint, if it is
        damaged, or if it does not fit `like` (then listing every leaf that differs).
        """
        saved, expected = self._manifest(step)["leaves"], _named_leaves(like)
        self._check_fit(step, saved, expected)
        abstract = {name: _abstract(leaf) for name, leaf in expected.items() if np.size(leaf)}
        with self._reading(step):
            found = ocp.load(self._folder(step), abstract)
        for name, leaf in expected.items():
            array = found[name] if name in abstract else np.empty(leaf.shape, leaf.dtype)
            digests = {_digest(array), saved[name]["sha256"]} - {None}
            if len(digests) > 1:
                raise self._damaged(step, f"the SHA-256 of {name} is not what was saved")
            found[name] = _place(array, leaf)
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in expected])

    def _folder(self, step: int) -> Path:
        return self._directory / str(step)

    def _manifest(self, step: int) -> dict[str, Any]:
        if step not in (steps := self.steps):
            raise UserError(
                f"{self._directory}: there is no checkpoint of step {step}; "
                f"there are: {', '.join(map(str, steps)) or 'none'}."
            )
        with self._reading(step):
            metadata = ocp.checkpointables_metadata(self._folder(step)).custom_metadata
            manifest = metadata["manifest"]
            intact = _digest_of_manifest(manifest) == metadata["sha256"]
        if not intact:
            raise self._damaged(step, "the SHA-256 of its manifest is not what was saved")
        return manifest

    def _check_fit(self, step: int, saved: dict[str, Any], like: dict[str, Any]) -> None:
        expected = {name: _type(leaf) for name, leaf in like.items()}
        found = {name: entry["type"] for name, entry in saved.items()}
        different = [
            f"  {name}: expected {expected.get(name, 'nothing')}, "
            f"found {found.get(name, 'nothing')}"
            for name in sorted(expected | found)
            if expected.get(name) != found.get(name)
        ]
        if different:
            raise UserError(
                f"{self._folder(step)}: this checkpoint does not fit the model:\n"
                + "\n".join(different)
                + "\nUse the config that it was trained with, or another workdir."
            )

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._saving = None
            raise UserError(
                f"{self._folder(step)}: this checkpoint could not be written ({_reason(error)}). "
                f"Make room there or choose another workdir; {self._what_is_left(step)}."
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        # When one read fails, Orbax abandons the others, and each would print a trace of its own.
        hook = sys.unraisablehook
        sys.unraisablehook = lambda u: None if _ABANDONED.search(str(u.exc_value)) else hook(u)
        try:
            yield
        except Exception as error:  # leaves the hook: the other reads are still under way
            warnings.filterwarnings("ignore", _ABANDONED.pattern, RuntimeWarning)
            raise self._damaged(step, _reason(error)) from error
        sys.unraisablehook = hook

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder(step)}: this checkpoint is damaged ({reason}). Delete that folder; "
            f"{self._what_is_left(step)}."
        )

    def _what_is_left(self, without: int) -> str:
        steps = [step for step in self.steps if step != without]
        if not steps:
            return "there is no other, so training then starts anew"
        return f"training then resumes from step {steps[-1]}"

    def _delete_old(self) -> None:
        for leftover in self._directory.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        for step in set(self.steps) - {0, *self.steps[-self._keep :], self.best}:
            # Renamed first: a half deleted folder must not count as a checkpoint.
            shutil.rmtree(self._folder(step).rename(self._directory / f"{step}{_TEMPORARY}"))


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves have the same name: a key that contains '/' is ambiguous")
    return named


def _spans_hosts(sharding: jax.sharding.Sharding | None) -> bool:
    """Whether no host holds the whole array."""
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


def _type(leaf: Any) -> str:
    """Such as `float32[3, 4]`."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def _digest(array: np.ndarray | jax.Array) -> str | None:
    """The SHA-256 of the array's bytes; None if they are spread over hosts."""
    if isinstance(array, jax.Array):
        return None
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _digest_of_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _abstract(leaf: Any) -> Any:
    """What Orbax is asked for: a NumPy array, unless each host needs only its part."""
    return leaf if _spans_hosts(getattr(leaf, "sharding", None)) else np.ndarray


def _place(array: np.ndarray | jax.Array, like: Any) -> np.ndarray | jax.Array:
    if isinstance(array, jax.Array) or not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return array
    # An uncommitted array stays so: a committed copy would make jit compile again.
    if like.sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return jax.numpy.asarray(array)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
